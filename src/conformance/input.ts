/**
 * The numbers that every check feeds an implementation: made from a seed by integer arithmetic and exact conversions, so
 * that any language makes the same. `conformance/README.md` describes them.
 */

/** How K and V are shaped; all but `offset` are exact in binary16. */
export type InputKind = "gauss" | "outlier" | "hot" | "lowstd" | "constant" | "offset";

/** xorshift32: unsigned 32-bit integers. */
export function xorshift32(seed: number): () => number {
  let x = seed;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  };
}

/** About normal numbers of standard deviation 1.15, multiples of 1/512: each the sum of four 10-bit draws. */
export function drawFrom(seed: number): () => number {
  const next = xorshift32(seed);
  return () => ((next() >>> 22) + (next() >>> 22) + (next() >>> 22) + (next() >>> 22) - 2046) / 512;
}

/** `length` draws times `scale`, a power of two. */
export function drawArray(length: number, seed: number, scale = 1): Float32Array {
  const draw = drawFrom(seed);
  return Float32Array.from({ length }, () => draw() * scale);
}

/** Turns a draw into the element of token t, head h, channel d. */
type Factor = (draw: number, t: number, h: number, d: number) => number;

const constant: Factor = (draw, t) => (t % 3 === 0 ? 0 : t % 3 === 1 ? 1.25 : draw);

const SHAPES: Readonly<Record<InputKind, { key: Factor; value: Factor }>> = {
  gauss: { key: (draw) => draw, value: (draw) => draw },
  outlier: {
    key: (draw, t, h, d) => draw * ((7 * d + 3 * h) % 25 === 0 ? 16 : 1) * (t % 29 === 5 ? 4 : 1),
    value: (draw, t) => draw * (t % 17 === 3 ? 8 : t % 5 === 1 ? 0.25 : 1),
  },
  hot: {
    key: (draw, t, h, d) =>
      draw * ((5 * d + h) % 31 === 0 ? 32 : 1) * (t % 37 === 11 ? 8 : t % 7 === 2 ? 0.125 : 1),
    value: (draw, t, h, d) => draw * (t % 23 === 4 ? 16 : 1) * ((3 * d + h) % 29 === 1 ? 8 : 1),
  },
  lowstd: { key: (draw) => draw / 64, value: (draw) => draw / 256 },
  constant: { key: constant, value: constant },
  offset: {
    key: (draw, t) => (draw + 256) * 2 ** ((3 * t) % 5),
    value: (draw, _t, _h, d) => (draw + 256) * 2 ** ((3 * d) % 5),
  },
};

/** What K or V is made of. */
export interface InputSpec {
  readonly side: "key" | "value";
  readonly kind: InputKind;
  readonly seed: number;
  readonly tokens: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** K or V, `[tokens, kvHeads, headDim]`. */
export function makeInput({ side, kind, seed, tokens, kvHeads, headDim }: InputSpec): Float32Array {
  const factor = SHAPES[kind][side];
  const draw = drawFrom(seed);
  const values = new Float32Array(tokens * kvHeads * headDim);
  let i = 0;
  for (let t = 0; t < tokens; t++) {
    for (let h = 0; h < kvHeads; h++) {
      for (let d = 0; d < headDim; d++) values[i++] = factor(draw(), t, h, d);
    }
  }
  return values;
}

/**
 * A tile for `pack` whose codes are certain, `[rows, columns]`: row r spans `2^bits - 1` steps of a power of two from an
 * integer on, and its elements lie on quarters of a step, so ties are among them. Every 16th row is constant.
 */
export function makeGrid(rows: number, columns: number, bits: number, seed: number): Float32Array {
  const next = xorshift32(seed);
  const largest = 2 ** bits - 1;
  return Float32Array.from({ length: rows * columns }, (_, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    const u = next();
    const quarters = column === 0 ? 0 : column === 1 ? 4 * largest : (u >>> 16) % (4 * largest + 1);
    const low = (row % 7) - 3;
    return row % 16 === 5 ? low : low + (quarters / 4) * 2 ** ((row % 5) - 2);
  });
}
