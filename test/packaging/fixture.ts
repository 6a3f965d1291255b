/** What `kvarn report` measures, with an engine of the installed package. */
import { readDump } from "../../src/cli/dump.js";
import { measure } from "../../src/cli/measure.js";
import { DEFAULT_ITERATIONS } from "../../src/config.js";
import { DEFAULT_PRESET } from "../../src/format.js";
import type { Kvarn } from "../../src/index.js";

/** The relative error of attention over all layers of a dump. */
export async function measureFixture(kvarn: Kvarn, dump: Uint8Array): Promise<number | null> {
  const options = { preset: DEFAULT_PRESET, iterations: DEFAULT_ITERATIONS, exactWindow: 0 };
  const { total } = await measure(kvarn, readDump(dump).layers, options, () => undefined);
  return total.error.output;
}
