/** Query rows that read a key, or add a value, together: each is loaded once for all of them. */
const LANES = 4;

/** Queries of one KV head and what they see. */
export interface HeadQueries {
  /** `[rows, headDim]`, times the softmax's scale. */
  readonly rows: Float32Array;
  /** How many of the first tokens each row sees; at least one, ascending. */
  readonly visible: Int32Array;
}

/**
 * `softmax(q K^T) V` of one KV head: scores in f32, sums in f64.
 * @param keys `[tokens, headDim]`, or more than are seen
 * @param values the same
 * @returns `[rows, headDim]`
 */
export function attendHead(
  { rows, visible }: HeadQueries,
  keys: Float32Array,
  values: Float32Array,
  headDim: number,
): Float32Array {
  const count = visible.length;
  const out = new Float32Array(rows.length);
  const stride = visible[count - 1];
  const scores = new Float32Array(LANES * stride);
  const q = new Float32Array(LANES * headDim);
  const sums = new Float64Array(LANES * headDim);
  for (let first = 0; first < count; first += LANES) {
    const lanes = Math.min(LANES, count - first);
    const tokens = visible[first + lanes - 1];
    // Lanes without a row compute with zeros, and nobody reads what.
    q.fill(0);
    q.set(rows.subarray(first * headDim, (first + lanes) * headDim));
    score(q, keys, headDim, tokens, stride, scores);
    for (let lane = 0; lane < lanes; lane++) {
      softmax(scores.subarray(lane * stride, lane * stride + tokens), visible[first + lane]);
    }
    weigh(scores, values, headDim, tokens, stride, sums);
    out.set(sums.subarray(0, lanes * headDim), first * headDim);
  }
  return out;
}

/** `scores[lane * stride + token] = q[lane] . keys[token]` */
function score(
  q: Float32Array,
  keys: Float32Array,
  headDim: number,
  tokens: number,
  stride: number,
  scores: Float32Array,
): void {
  const [q1, q2, q3] = [headDim, 2 * headDim, 3 * headDim];
  for (let token = 0, at = 0; token < tokens; token++, at += headDim) {
    let a = 0;
    let b = 0;
    let c = 0;
    let d = 0;
    for (let i = 0; i < headDim; i++) {
      const key = keys[at + i];
      a += key * q[i];
      b += key * q[q1 + i];
      c += key * q[q2 + i];
      d += key * q[q3 + i];
    }
    scores[token] = a;
    scores[stride + token] = b;
    scores[2 * stride + token] = c;
    scores[3 * stride + token] = d;
  }
}

/** Turns the first `visible` scores into weights that sum up to 1, in place, and the others into zeros. */
function softmax(scores: Float32Array, visible: number): void {
  let most = -Infinity;
  for (let token = 0; token < visible; token++) if (scores[token] > most) most = scores[token];
  let sum = 0;
  for (let token = 0; token < visible; token++) sum += scores[token] = Math.exp(scores[token] - most);
  for (let token = 0; token < visible; token++) scores[token] /= sum;
  scores.fill(0, visible);
}

/** `sums[lane] = sum(scores[lane * stride + token] * values[token])` */
function weigh(
  scores: Float32Array,
  values: Float32Array,
  headDim: number,
  tokens: number,
  stride: number,
  sums: Float64Array,
): void {
  sums.fill(0);
  const [s1, s2, s3] = [headDim, 2 * headDim, 3 * headDim];
  for (let token = 0, at = 0; token < tokens; token++, at += headDim) {
    const a = scores[token];
    const b = scores[stride + token];
    const c = scores[2 * stride + token];
    const d = scores[3 * stride + token];
    for (let i = 0; i < headDim; i++) {
      const value = values[at + i];
      sums[i] += a * value;
      sums[s1 + i] += b * value;
      sums[s2 + i] += c * value;
      sums[s3 + i] += d * value;
    }
  }
}
