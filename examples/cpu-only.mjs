// A server without a GPU: the engine in WebAssembly, one thread, caches saved between requests.
import { openKvarn } from "kvarn";

// #region open
const kvarn = await openKvarn({ backend: "wasm" }); // an error where SIMD is missing, never anything slower
console.log(kvarn.backend.kind, kvarn.backend.variant);

const shape = { layers: 2, queryHeads: 8, kvHeads: 2, headDim: 64 };
const cache = kvarn.createCache({ ...shape, preset: "k4v2_g128", capacity: 2048 });
// #endregion

// Stand-ins for what a model computes; keys and queries come after RoPE.
const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);
const project = (tokens, heads) => random(tokens * heads * shape.headDim);

// #region prompt
// In chunks: what one call appends is in binary16 until the next one.
for (let from = 0; from < 1024; from += 256) {
  for (let layer = 0; layer < shape.layers; layer++) {
    await cache.append(layer, project(256, shape.kvHeads), project(256, shape.kvHeads));
    await cache.attend(layer, project(256, shape.queryHeads));
  }
}
await cache.flush();
// #endregion

// #region fork
// Two answers to one prompt share its memory.
const other = cache.fork();
const out = new Float32Array(shape.queryHeads * shape.headDim); // nothing is allocated for a token
for (const branch of [cache, other]) {
  for (let layer = 0; layer < shape.layers; layer++) {
    await branch.append(layer, project(1, shape.kvHeads), project(1, shape.kvHeads));
    await branch.attend(layer, project(1, shape.queryHeads), { out });
  }
}
other.dispose();
// #endregion

// #region save
cache.truncate(1024); // back to the prompt
const saved = await cache.serialize(); // for a file, a database, another machine
cache.dispose();
const restored = await kvarn.restoreCache(saved);
console.log(restored.length(0), "tokens,", saved.length, "bytes,", restored.memory().ratio.toFixed(2));
// #endregion
kvarn.dispose();
