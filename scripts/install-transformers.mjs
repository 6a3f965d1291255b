// Installs @huggingface/transformers beside the examples that use it. Not among the development dependencies: with its
// runtimes for every platform it takes half a gigabyte. Without scripts: they would fetch what needs an NVIDIA GPU.
import { execFileSync } from "node:child_process";

const flags = ["--no-save", "--no-audit", "--no-fund", "--ignore-scripts"];

execFileSync("npm", ["install", ...flags, "--prefix", "examples", "@huggingface/transformers@4.3.1"], {
  stdio: "inherit",
});
