import { parsePreset, recordLayout } from "../../format.js";
import { expectConforms, relativeError } from "../compare.js";
import { type CacheCase, derived } from "../data.js";
import { type Observer, runScript } from "../script.js";
import { type Check, expectArray, expectThat, expectWithin } from "./check.js";

/**
 * Relative L2 error allowed of an attention: more than a code that differs or 16-bit integers make, less than a token that
 * is lacking, or encoded too early, does.
 */
const ALLOWED = 5e-3;

/** Lives of caches: what is attended to and what is encoded at every point, against what is stored. */
export function cacheChecks(): Check[] {
  return derived.cases.cache.map((script) => ({
    subject: "cache",
    name: script.name,
    async run(adapter) {
      const { observer, result } = comparison(script);
      await runScript(adapter, script, observer);
      return result();
    },
  }));
}

function comparison({ config }: CacheCase): { observer: Observer; result: () => string } {
  let worst = 0;
  let codes = 0;
  let codesDiffering = 0;
  const observer: Observer = {
    attended({ output }, out) {
      const expected = derived.floats(output);
      const error = relativeError(expectArray("the result", out, Float32Array, expected.length), expected);
      expectWithin("output", error, ALLOWED);
      worst = Math.max(worst, error);
    },
    exported({ layer, records }, actual) {
      const layout = recordLayout(parsePreset(config.preset), config.layers[layer].headDim);
      const perTile = config.layers[layer].kvHeads * layout.bytes;
      expectArray("the records", actual, Uint8Array, records.length * perTile);
      records.forEach((slice, tile) => {
        const part = actual.subarray(tile * perTile, (tile + 1) * perTile);
        const comparison = expectConforms(part, derived.bytes(slice), layout, `encoded tile ${tile}`);
        codes += comparison.codes;
        codesDiffering += comparison.codesDiffering;
      });
    },
    counted({ length }, actual) {
      expectThat(actual === length, `the length is ${actual} instead of ${length}`);
    },
    saved({ mostBytes }, bytes) {
      expectThat(bytes.length <= mostBytes, `${bytes.length} bytes, at most ${mostBytes} are needed`);
    },
  };
  const result = (): string =>
    `outputs off by ${worst.toExponential(1)}` +
    (codes > 0 ? `, ${codesDiffering} of ${codes} codes differ` : "");
  return { observer, result };
}
