import { runLlama } from "./cli.js";

// Not process.exit: that would cut off what a pipe has not taken yet.
process.exitCode = await runLlama(process.argv.slice(2), process);
