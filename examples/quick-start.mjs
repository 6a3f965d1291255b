import { openKvarn } from "kvarn";

const kvarn = await openKvarn(); // the fastest backend that runs here
console.log(kvarn.backend); // { kind: "wasm", variant: "strict", reason: … }

const cache = kvarn.createCache({ preset: "k4v2_g128", layers: 2, queryHeads: 9, kvHeads: 3, headDim: 64 });

// Stand-ins for what a model computes; keys and queries come after RoPE.
const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);

for (let layer = 0; layer < 2; layer++) {
  await cache.append(layer, random(500 * 3 * 64), random(500 * 3 * 64)); // a prompt: [tokens, kvHeads, headDim]
}
const out = new Float32Array(9 * 64);
for (let layer = 0; layer < 2; layer++) {
  await cache.append(layer, random(3 * 64), random(3 * 64)); // a decode step
  await cache.attend(layer, random(9 * 64), { out }); // [tokens, queryHeads, headDim]
}
console.log(cache.memory()); // bytes held, and against binary16
kvarn.dispose();
