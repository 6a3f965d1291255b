/** More tokens in one append than one grid or one upload takes. */
import { afterAll, expect, it } from "vitest";
import { openKvarn } from "../../src/index.js";
import { toHalf } from "../../src/half.js";
import { rotate } from "../../src/reference/rotate.js";
import { expectSame, readSaved } from "../support/cache.js";
import { hasGpu } from "../support/engines.js";
import { randomArray } from "../support/random.js";

const kvarn = hasGpu ? await openKvarn({ backend: "webgpu", allowSoftwareAdapter: true }) : undefined;
afterAll(() => kvarn?.dispose());

it.skipIf(!hasGpu).each([
  // More tokens than one dimension of a grid has workgroups.
  [16, 33_000],
  // More bytes than are uploaded at a time.
  [512, 8300],
])("a GPU takes in many tokens at once, D=%i, %i tokens", async (headDim, count) => {
  const few = randomArray(8191, 5);
  const k = Float32Array.from({ length: count * headDim }, (_, i) => few[i % few.length] + (i >> 13) / 64);
  const v = k.map((x) => 1 - x);
  const cache = kvarn!.createCache({ preset: "k4v2_g64", layers: 1, queryHeads: 1, kvHeads: 1, headDim });
  await cache.append(0, k, v);
  const { tiles } = readSaved(await cache.serialize()).layers[0];
  cache.dispose();
  const [rotatedK, rotatedV] = [rotate(k, headDim), rotate(v, headDim)];
  let token = 0;
  for (const { kind, tokens, data } of tiles) {
    expect(kind).toBe("exact");
    const expected = new Uint16Array(data.length / 2);
    for (let i = 0; i < expected.length; i++) {
      const [channel, row] = [i % headDim, Math.floor(i / headDim)];
      const from = row % 2 === 0 ? rotatedK : rotatedV;
      expected[i] = toHalf(from[(token + (row >> 1)) * headDim + channel]);
    }
    expectSame(new Uint16Array(data.buffer), expected);
    token += tokens;
  }
  expect(token).toBe(count);
});
