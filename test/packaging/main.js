// What Node, Deno and Bun run, with options in JSON: one line of JSON, and nothing that keeps the process.
import { check } from "./check.js";

console.log(JSON.stringify(await check(JSON.parse(globalThis.process.argv[2]))));
