/** What is done where there is no command line: the check, and what `kvarn report` would say of the fixture. */
import { openKvarn } from "kvarn";
import { check } from "./check.js";
import { measureFixture } from "./fixture.js";

/** @returns what `check` does, and `outputError`: the relative error of attention on the fixture */
export async function checkAll(options, fixture) {
  const report = await check(options);
  const kvarn = await openKvarn({ backend: "wasm", wasm: options.wasm });
  const outputError = await measureFixture(kvarn, new Uint8Array(fixture));
  kvarn.dispose();
  return { ...report, outputError };
}

/** The same where the fixture is to be fetched. */
export async function checkAllThere(options) {
  const response = await fetch("./fixture.safetensors");
  return checkAll(options, await response.arrayBuffer());
}
