// What Node, Deno and Bun run: one line of JSON, and nothing that keeps the process.
import { check } from "./check.js";

console.log(JSON.stringify(await check()));
