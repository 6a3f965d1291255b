// Records as vLLM's KVarN holds them: out of a cache, spaced as there, and into another one.
import { openKvarn, parsePreset, recordLayout } from "kvarn";

const kvarn = await openKvarn();
const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);

// #region export
const [group, queryHeads, kvHeads, headDim] = [128, 8, 2, 256];
const preset = "k4v2_g128"; // there: kvarn_k4v2_g128
const cache = kvarn.createCache({ preset, layers: 1, queryHeads, kvHeads, headDim });
const [k, v] = [random(500 * kvHeads * headDim), random(500 * kvHeads * headDim)];
await cache.append(0, k, v);
await cache.flush();

const { start, end } = cache.recordRange(0); // whole tiles behind the sink
const records = await cache.exportRecords(0, { padding: "vllm" });
const { bytes, paddedBytes } = recordLayout(parsePreset(preset), headDim);
console.log(`tokens ${start} to ${end}: ${bytes} of ${paddedBytes} bytes a record`);

/** Where the record of a tile and a KV head lies; tile 0 is the one that begins at `start`. */
const recordOf = (tile, head) => {
  const at = (tile * kvHeads + head) * paddedBytes;
  return records.subarray(at, at + paddedBytes);
};
// #endregion
console.log(
  "padding is zero:",
  recordOf(1, 1)
    .subarray(bytes)
    .every((byte) => byte === 0),
);

// #region import
// With the exact first tokens: the same cache again.
const width = kvHeads * headDim;
const twin = kvarn.createCache({ preset, layers: 1, queryHeads, kvHeads, headDim });
await twin.append(0, k.subarray(0, group * width), v.subarray(0, group * width));
await twin.importRecords(0, records, { padding: "vllm" });

// Without them: block 0 as a record, too, where its first tokens would be.
const prefix = kvarn.createCache({ preset, layers: 1, queryHeads, kvHeads, headDim });
const firstBlock = await kvarn.encode(k.subarray(0, group * width), v.subarray(0, group * width), {
  ...{ preset, kvHeads, headDim, padding: "vllm" },
});
await prefix.importRecords(0, firstBlock, { padding: "vllm" });
await prefix.importRecords(0, records, { padding: "vllm" });
// #endregion

cache.truncate(end); // the tail goes with no records
const q = random(queryHeads * headDim);
const exact = await cache.attend(0, q);
const difference = (other) => Math.hypot(...other.map((value, i) => value - exact[i])) / Math.hypot(...exact);
console.log("with the sink:", difference(await twin.attend(0, q)));
console.log("without:", difference(await prefix.attend(0, q)).toFixed(3));
kvarn.dispose();
