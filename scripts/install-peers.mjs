// Installs what the benchmarks compare with into build/peers. Not among the development dependencies: it takes a quarter of
// a gigabyte, and neither build nor tests need it. Without scripts, which would compile, and of node-llama-cpp's binaries only that for this
// platform's processors.
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";

const folder = "build/peers";
const flags = ["--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=optional"];
const packages = ["onnxruntime-web@1.30.0", "@bufbuild/protobuf@2.17.0", "node-llama-cpp@3.22.1"];
const platform = { linux: "linux", darwin: "mac", win32: "win" }[process.platform];
const binary = `${platform}-${process.arch}${process.platform === "darwin" && process.arch === "arm64" ? "-metal" : ""}`;

mkdirSync(folder, { recursive: true });
// Without it npm would look for the package that these belong to, and find this one.
writeFileSync(`${folder}/package.json`, '{ "private": true }\n');
execFileSync(
  "npm",
  ["install", ...flags, "--prefix", folder, ...packages, `@node-llama-cpp/${binary}@3.22.1`],
  {
    stdio: "inherit",
  },
);
