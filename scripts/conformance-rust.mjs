// Checks the Rust implementation in conformance/rust, natively and as WebAssembly, as far as the tools for it are
// here. What is absent is named, and a failure if KVARN_REQUIRE is set. The package must be built.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";

const MANIFEST = "conformance/rust/Cargo.toml";
const CRATE = "conformance/rust/web";
const TARGET = "wasm32-unknown-unknown";

/** What a command prints, trimmed; null where it is absent or fails. */
function output(command, ...args) {
  const { status, stdout } = spawnSync(command, args, { encoding: "utf8" });
  return status === 0 ? stdout.trim() : null;
}

/** Runs a command in the open; ends this process where it fails. */
function run(command, ...args) {
  console.log(`\n$ ${command} ${args.join(" ")}`);
  const { status } = spawnSync(command, args, { stdio: "inherit" });
  if (status !== 0) process.exit(1);
}

const cargo = output("cargo", "--version") !== null;
const libraries = output("rustc", "--print", "target-libdir", "--target", TARGET);
const absent = [
  ...(cargo ? [] : ["cargo (Rust)"]),
  ...(libraries !== null && existsSync(libraries) ? [] : [`Rust's target ${TARGET}`]),
  ...(output("wasm-pack", "--version") !== null ? [] : ["wasm-pack"]),
];

if (cargo) run("cargo", "test", "--release", "--locked", "--manifest-path", MANIFEST);
if (absent.length === 0) {
  run("wasm-pack", "build", CRATE, "--target", "nodejs", "--no-typescript", "--", "--locked");
  run(process.execPath, "conformance/rust/run.mjs");
} else {
  console.log(`absent: ${absent.join(", ")}; not run: ${cargo ? "as WebAssembly" : "conformance/rust"}`);
  if (process.env.KVARN_REQUIRE) process.exitCode = 1;
}
