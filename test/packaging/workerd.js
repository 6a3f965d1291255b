// The Worker for workerd, which compiles no bytes: the module comes with it, and so does the fixture.
import wasm from "kvarn/kvarn.wasm";
import fixture from "fixture.safetensors";
import { checkAll } from "./check-all.js";

// Its clock stands still while a program computes, and a measurement warms up until a quarter of a second is over.
let milliseconds = 0;
globalThis.performance = { now: () => (milliseconds += 50) };

export default {
  async test() {
    console.log(JSON.stringify(await checkAll({ wasm }, fixture)));
  },
};
