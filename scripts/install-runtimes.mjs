// Installs the JavaScript runtimes that test/runtimes runs the package in, into a folder, build/runtimes by default. Not
// among the development dependencies: they are large, and npm's lock file would hold them for one platform alone.
import { execFileSync } from "node:child_process";

const folder = process.argv[2] ?? "build/runtimes";
const node = `npm:node-${process.platform}-${process.arch}`;
const runtimes = [`node24@${node}@24`, `node26@${node}@26`, "deno@2", "bun@1", "workerd@1"];

execFileSync("npm", ["install", "--no-save", "--no-audit", "--no-fund", "--prefix", folder, ...runtimes], {
  stdio: "inherit",
});
