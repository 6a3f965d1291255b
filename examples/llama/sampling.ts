/** Choosing the next token. */

/** Takes logits, returns a token. */
export type Sampler = (logits: Float32Array) => number;

/** Always the likeliest token, of equals the first. */
export const greedy: Sampler = (logits) => {
  let best = 0;
  for (let token = 1; token < logits.length; token++) if (logits[token] > logits[best]) best = token;
  return best;
};

/**
 * Draws from the softmax of logits / temperature. The same seed and logits give the same tokens.
 * @param temperature 0 is {@link greedy}
 * @param seed an unsigned 32-bit integer
 */
export function sampler(temperature: number, seed: number): Sampler {
  if (temperature === 0) return greedy;
  const random = randomNumbers(seed);
  return (logits) => {
    const largest = logits[greedy(logits)];
    const weights = Float64Array.from(logits, (logit) => Math.exp((logit - largest) / temperature));
    let left = random() * weights.reduce((sum, weight) => sum + weight, 0);
    const token = weights.findIndex((weight) => (left -= weight) < 0);
    // Rounding may leave a little behind the last token.
    return token === -1 ? greedy(logits) : token;
  };
}

/** Numbers from 0 to below 1: the counter-based SplitMix generator, with the 32-bit mixer of MurmurHash3. */
function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let bits = state ^ (state >>> 16);
    bits = Math.imul(bits, 0x85ebca6b);
    bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
    return ((bits ^ (bits >>> 16)) >>> 0) / 2 ** 32;
  };
}
