/** What a Llama layer does besides matrix products and attention. All work on rows of one token each. */

/** Scales each row to unit root mean square, and each channel by its weight. */
export function rmsNorm(x: Float32Array, weight: Float32Array, eps: number, out: Float32Array): void {
  const width = weight.length;
  for (let from = 0; from < x.length; from += width) {
    let squares = 0;
    for (let i = 0; i < width; i++) squares += x[from + i] ** 2;
    const scale = 1 / Math.sqrt(squares / width + eps);
    for (let i = 0; i < width; i++) out[from + i] = x[from + i] * scale * weight[i];
  }
}

/** The cosines and sines of RoPE for some positions. */
export interface Rotation {
  readonly headDim: number;
  /** `[tokens, headDim / 2]` */
  readonly cosines: Float32Array;
  readonly sines: Float32Array;
}

/** The rotation of `tokens` positions, from `first` on. */
export function ropeRotation(first: number, tokens: number, headDim: number, theta: number): Rotation {
  const half = headDim / 2;
  const angles = Float64Array.from({ length: tokens * half }, (_, i) => {
    return (first + Math.floor(i / half)) * theta ** (-(i % half) / half);
  });
  return {
    headDim,
    cosines: Float32Array.from(angles, Math.cos),
    sines: Float32Array.from(angles, Math.sin),
  };
}

/** Turns the channels c and c + headDim / 2 of `[tokens, heads, headDim]`, in place. */
export function rope(x: Float32Array, heads: number, { headDim, cosines, sines }: Rotation): void {
  const half = headDim / 2;
  for (let from = 0; from < x.length; from += headDim) {
    const angles = Math.floor(from / headDim / heads) * half;
    for (let i = 0; i < half; i++) {
      const [cosine, sine] = [cosines[angles + i], sines[angles + i]];
      const [a, b] = [x[from + i], x[from + half + i]];
      x[from + i] = a * cosine - b * sine;
      x[from + half + i] = b * cosine + a * sine;
    }
  }
}

/** silu(gate) * up, into `gate`. */
export function swiGlu(gate: Float32Array, up: Float32Array): void {
  for (let i = 0; i < gate.length; i++) gate[i] = (gate[i] / (1 + Math.exp(-gate[i]))) * up[i];
}

/** x += y */
export function add(x: Float32Array, y: Float32Array): void {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}
