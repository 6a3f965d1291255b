// Runs `kvarn/conformance` on the Rust implementation as WebAssembly, which wasm-pack has put into web/pkg.
import { runConformance } from "kvarn/conformance";
import * as rust from "./web/pkg/kvarn_conformance_web.js";

/** A `LayerConfig` as the class that holds it in Rust; whoever gets it frees it. */
function layerOf({ queryHeads, kvHeads, headDim, softmaxScale, slidingWindow, softCap, sinkLogits }) {
  const layer = new rust.Layer(queryHeads, kvHeads, headDim);
  layer.softmaxScale = softmaxScale;
  layer.slidingWindow = slidingWindow;
  layer.softCap = softCap;
  layer.sinkLogits = sinkLogits && Float64Array.from(sinkLogits);
  return layer;
}

/** The fields of an object in Rust as a plain object. */
function plain(object, ...fields) {
  const copy = Object.fromEntries(fields.map((field) => [field, object[field]]));
  object.free();
  return copy;
}

/** Only names differ from the suite's. */
function cacheOf(cache) {
  return {
    append: (layer, k, v) => cache.append(layer, k, v),
    attend: (layer, q) => cache.attend(layer, q),
    length: (layer) => cache.length(layer),
    flush: () => cache.flush(),
    truncate: (length) => cache.truncate(length),
    fork: () => cacheOf(cache.fork()),
    serialize: () => cache.serialize(),
    exportRecords: (layer) => cache.exportRecords(layer),
    dispose: () => cache.free(),
  };
}

const report = await runConformance({
  // f64, in fact.
  f32Attention: true,
  encode: (k, v, { preset, kvHeads, headDim, iterations }) =>
    rust.encode(k, v, preset, kvHeads, headDim, iterations),
  decode: (records, { preset, kvHeads, headDim }) =>
    plain(rust.decode(records, preset, kvHeads, headDim), "k", "v"),
  rotate: (x, { headDim }) => rust.rotate(x, headDim),
  normalize: (tile, { columns, iterations }) =>
    plain(rust.normalize(tile, columns, iterations), "balanced", "rowScale", "columnScale"),
  pack: (tile, { columns, bits }) => plain(rust.pack(tile, columns, bits), "codes", "scale", "zero"),
  attend(call) {
    const objects = [
      layerOf(call),
      new rust.Exact(call.sink.k, call.sink.v),
      new rust.Exact(call.tail.k, call.tail.v),
    ];
    const [layer, sink, tail] = objects;
    try {
      return rust.attend(layer, call.preset, call.q, sink, call.records, tail);
    } finally {
      for (const object of objects) object.free();
    }
  },
  createCache({ preset, iterations, exactWindow, layers }) {
    const cache = new rust.Cache(preset, iterations, exactWindow);
    for (const layer of layers) cache.addLayer(layerOf(layer));
    return cacheOf(cache);
  },
  restoreCache: (bytes) => cacheOf(rust.Cache.restore(bytes)),
});

for (const { subject, name, status, detail } of report.checks) {
  if (status !== "passed") console.log(`${status}: ${subject}, ${name}: ${detail}`);
}
const { passed, failed, notCovered } = report.counts;
console.log(`${passed} passed, ${failed} failed, ${notCovered} not covered`);
// Nothing is left out here, so what is not covered is a mistake in this file.
process.exitCode = report.passed && notCovered === 0 ? 0 : 1;
