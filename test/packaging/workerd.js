// The Worker for workerd, which compiles no bytes: the module comes with it.
import wasm from "kvarn/kvarn.wasm";
import { check } from "./check.js";

export default {
  async test() {
    console.log(JSON.stringify(await check({ wasm })));
  },
};
