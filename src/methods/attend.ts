/**
 * Query rows that read a key, or add a value, together: each is loaded once for all of them. Tokens go by pairs, so that
 * sums are loaded half as often.
 */
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
 * @param keys `[capacity, headDim]`: all finite, and room for one token more where an odd number is seen
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
  const stride = visible[count - 1] + 1;
  const scores = new Float32Array(LANES * stride);
  const q = new Float32Array(LANES * headDim);
  const sums = new Float64Array(LANES * headDim);
  for (let first = 0; first < count; first += LANES) {
    const lanes = Math.min(LANES, count - first);
    const most = visible[first + lanes - 1];
    const tokens = most + (most % 2);
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
  const [lane1, lane2, lane3] = [headDim, 2 * headDim, 3 * headDim];
  for (let token = 0, at = 0; token < tokens; token += 2, at += 2 * headDim) {
    let [a, b, c, d] = [0, 0, 0, 0];
    let [e, f, g, h] = [0, 0, 0, 0];
    for (let i = 0; i < headDim; i++) {
      const first = keys[at + i];
      const second = keys[at + headDim + i];
      a += first * q[i];
      b += first * q[lane1 + i];
      c += first * q[lane2 + i];
      d += first * q[lane3 + i];
      e += second * q[i];
      f += second * q[lane1 + i];
      g += second * q[lane2 + i];
      h += second * q[lane3 + i];
    }
    scores[token] = a;
    scores[stride + token] = b;
    scores[2 * stride + token] = c;
    scores[3 * stride + token] = d;
    scores[token + 1] = e;
    scores[stride + token + 1] = f;
    scores[2 * stride + token + 1] = g;
    scores[3 * stride + token + 1] = h;
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
  const [lane1, lane2, lane3] = [headDim, 2 * headDim, 3 * headDim];
  for (let token = 0, at = 0; token < tokens; token += 2, at += 2 * headDim) {
    const a = scores[token];
    const b = scores[stride + token];
    const c = scores[2 * stride + token];
    const d = scores[3 * stride + token];
    const e = scores[token + 1];
    const f = scores[stride + token + 1];
    const g = scores[2 * stride + token + 1];
    const h = scores[3 * stride + token + 1];
    for (let i = 0; i < headDim; i++) {
      const first = values[at + i];
      const second = values[at + headDim + i];
      sums[i] += a * first + e * second;
      sums[lane1 + i] += b * first + f * second;
      sums[lane2 + i] += c * first + g * second;
      sums[lane3 + i] += d * first + h * second;
    }
  }
}
