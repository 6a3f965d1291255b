// Checks what would be published: the npm package's metadata, types and size, the API documentation, and the JSR package
// where Deno is there (KVARN_DENO names its executable). With KVARN_REQUIRE set, an absent Deno is a failure. Needs `dist`.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const folder = mkdtempSync(join(tmpdir(), "kvarn-pack-"));
const deno = process.env.KVARN_DENO ?? "deno";
const failed = [];

try {
  // Without scripts: they would build anew.
  check("npm", "pack", "--ignore-scripts", "--silent", "--pack-destination", folder);
  const [tarball] = readdirSync(folder).map((file) => join(folder, file));
  check("publint", "run", tarball, "--strict");
  // Packages that only import have no CommonJS. What importing a .wasm gives is the bundler's to say.
  const wasm = Object.keys(readJson("package.json").exports).filter((path) => path.endsWith(".wasm"));
  check("attw", tarball, "--profile", "esm-only", "--exclude-entrypoints", ...wasm);
  check("size-limit");
  check("typedoc");
  checkJsr();
} finally {
  rmSync(folder, { recursive: true });
}
if (failed.length > 0) console.error(`\nfailed: ${failed.join(", ")}`);
process.exitCode = failed.length > 0 ? 1 : 0;

/** JSR takes the sources, with the generated ones, and refuses types that it would have to infer. */
function checkJsr() {
  if (readJson("jsr.json").version !== readJson("package.json").version) {
    console.error("\njsr.json and package.json differ in their version");
    failed.push("jsr.json");
  }
  if (spawnSync(deno, ["--version"]).status === 0) {
    check(deno, "publish", "--dry-run", "--allow-dirty");
  } else {
    console.error(`\n${deno} is absent, jsr.json is not checked`);
    if (process.env.KVARN_REQUIRE) failed.push("deno");
  }
}

function check(command, ...args) {
  console.log(`\n== ${command} ${args.join(" ")}`);
  const { status, error } = spawnSync(command, args, { stdio: ["ignore", "inherit", "inherit"] });
  if (error) console.error(String(error));
  if (status !== 0) failed.push(command);
}

function readJson(path) {
  return JSON.parse(readFileSync(path, "utf8"));
}
