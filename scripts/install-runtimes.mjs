// Installs the JavaScript runtimes that test/packaging/runtimes.ts runs the package in, into a folder, build/runtimes by default. Not
// among the development dependencies: they are large, and npm's lock file would hold them for one platform alone.
import { execFileSync } from "node:child_process";

const folder = process.argv[2] ?? "build/runtimes";
const node = `npm:node-${process.platform}-${process.arch}`;
// One version of Node is here.
const majors = [20, 24, 26].filter((major) => !process.version.startsWith(`v${major}.`));
const runtimes = [...majors.map((major) => `node${major}@${node}@${major}`), "deno@2", "bun@1", "workerd@1"];

execFileSync("npm", ["install", "--no-save", "--no-audit", "--no-fund", "--prefix", folder, ...runtimes], {
  stdio: "inherit",
});
