/** The package as a user has it: packed, and installed into a folder of its own. */
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A folder with the package in `node_modules`, and with copies of files of this folder. Needs `dist`. */
export function installPackage(files: string[]): { root: string; remove: () => void } {
  const root = mkdtempSync(join(tmpdir(), "kvarn-package-"));
  writeFileSync(join(root, "package.json"), JSON.stringify({ private: true, type: "module" }));
  // Without scripts: they would build anew.
  const packed = npm(["pack", "--ignore-scripts", "--json", "--pack-destination", root]);
  const [{ filename }] = JSON.parse(packed) as { filename: string }[];
  npm([
    "install",
    "--offline",
    "--no-save",
    "--no-audit",
    "--no-fund",
    "--prefix",
    root,
    join(root, filename),
  ]);
  for (const file of files) copyFileSync(join(import.meta.dirname, file), join(root, file));
  return { root, remove: () => rmSync(root, { recursive: true, force: true }) };
}

function npm(args: string[]): string {
  return execFileSync("npm", args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
}
