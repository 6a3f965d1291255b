// Several methods on the same keys, values and queries: what each would store, and what attention loses by it.
// #region compare
import { createMethod, METHOD_NAMES, MethodCache } from "kvarn/methods";

const model = { layers: 1, queryHeads: 4, kvHeads: 2, headDim: 64 };
const tokens = 512;

// Stand-ins for what a model computes; keys and queries come after RoPE.
const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);
const [k, v] = [random(tokens * 2 * 64), random(tokens * 2 * 64)];
const q = random(tokens * 4 * 64);

for (const name of METHOD_NAMES) {
  const cache = new MethodCache(createMethod(name), model);
  cache.append(0, k, v, tokens);
  const exact = cache.attend(0, q, tokens); // nothing of the newest append is compressed yet
  cache.flush();
  const error = relativeError(cache.attend(0, q, tokens), exact);
  console.log(name, `${cache.bitsPerValue().toFixed(2)} bits,`, `output error ${(100 * error).toFixed(1)} %`);
}
// #endregion

function relativeError(actual, expected) {
  const energy = (values) => values.reduce((sum, value) => sum + value * value, 0);
  return Math.sqrt(energy(actual.map((value, i) => value - expected[i])) / energy(expected));
}
