/** Comparing what two runs of a model expect the next token to be. */
import { greedy } from "../examples/llama/sampling.js";

/** Two distributions over the next token, compared. */
export interface NextToken {
  /** Kullback-Leibler divergence from the exact one, in nats. */
  readonly kl: number;
  /** `-log p` of the token that came, in nats; NaN where none is given. */
  readonly nll: number;
  /** Whether both find the same token likeliest. */
  readonly agrees: boolean;
}

/** @param came the token that did come next */
export function compareNext(exact: Float32Array, actual: Float32Array, came: number | undefined): NextToken {
  const [p, q] = [normalize(exact), normalize(actual)];
  let kl = 0;
  for (let i = 0; i < exact.length; i++) {
    const logP = exact[i] - p.logSum;
    kl += Math.exp(logP) * (logP - (actual[i] - q.logSum));
  }
  return {
    kl,
    nll: came === undefined ? NaN : q.logSum - actual[came],
    agrees: p.best === q.best,
  };
}

/**
 * Compares what two runs expect after each token of a block.
 * @param exact `[tokens, vocabulary]`
 * @param actual the same
 * @param tokens how many they are
 * @param came those that did come next; after a text's last token nothing is known to
 */
export function compareBlock(
  exact: Float32Array,
  actual: Float32Array,
  tokens: number,
  came: readonly number[],
): NextToken[] {
  const vocabulary = exact.length / tokens;
  const row = (logits: Float32Array, token: number): Float32Array =>
    logits.subarray(token * vocabulary, (token + 1) * vocabulary);
  return came.map((next, token) => compareNext(row(exact, token), row(actual, token), next));
}

/** The logarithm of the sum of exponentials, and the likeliest token: of equals the first. */
function normalize(logits: Float32Array): { logSum: number; best: number } {
  const best = greedy(logits);
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i] - logits[best]);
  return { logSum: logits[best] + Math.log(sum), best };
}
