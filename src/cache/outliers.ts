/**
 * The outlier tokens of a layer: of each KV head, tokens of small keys that stay exact while the rest of their tile is
 * encoded. A tile that is encoded competes with the pool, the `count` tokens of the head with the smallest keys so far;
 * what leaves the pool stays exact as well, until there are 32 of these that a sliding window, if any, still reaches, and then no more are looked for. So
 * tokens are only ever added, but for those that the window leaves behind, in the order of their tiles, and which of them are the pool follows from their keys: cutting
 * a layer at a tile's end leaves what would be there had it never been longer.
 *
 * Source: Accurate KV Cache Quantization with Outlier Tokens Tracing, arXiv 2505.10938. The magnitudes of K are summed in
 * the rotated frame here.
 */
import type { Outliers } from "../backend.js";
import { fromHalf } from "../half.js";
import { mostOutliers } from "./schedule.js";

/** One token of one KV head. */
interface Outlier {
  readonly position: number;
  /** Sum of the magnitudes of K. */
  readonly norm: number;
  /** Binary16 bits, `[2 (K, V), headDim]`. */
  readonly token: Uint16Array;
}

/** The outlier tokens of one layer. Never changes: what would change it returns another. */
export class OutlierPool implements Outliers {
  readonly positions: readonly (readonly number[])[];
  readonly data: Uint16Array;
  /** By KV head, in the order of their positions. */
  readonly #heads: readonly (readonly Outlier[])[];

  private constructor(heads: readonly (readonly Outlier[])[]) {
    this.positions = heads.map((head) => head.map(({ position }) => position));
    this.data = new Uint16Array(heads.flat().reduce((sum, { token }) => sum + token.length, 0));
    let at = 0;
    const keep = (outlier: Outlier): Outlier => {
      const token = this.data.subarray(at, (at += outlier.token.length));
      token.set(outlier.token);
      return { ...outlier, token };
    };
    this.#heads = heads.map((head) => head.map(keep));
  }

  static empty(kvHeads: number): OutlierPool {
    return new OutlierPool(Array.from({ length: kvHeads }, () => []));
  }

  /** The pool that has these positions and this data. */
  static of({ positions, data }: Outliers, headDim: number): OutlierPool {
    let at = 0;
    const take = (position: number): Outlier => {
      const token = data.subarray(at, (at += 2 * headDim));
      return makeOutlier(position, token);
    };
    return new OutlierPool(positions.map((head) => head.map(take)));
  }

  /** Tokens, those of each head counted. */
  get count(): number {
    return this.#heads.reduce((sum, { length }) => sum + length, 0);
  }

  /** Whether no head looks for more of them. */
  isFull(count: number): boolean {
    return this.#heads.every(({ length }) => length >= mostOutliers(count, Infinity));
  }

  /** Without what lies before `from`, or from `to` on. */
  within(from: number, to = Infinity): OutlierPool {
    const isKept = ({ position }: Outlier) => position >= from && position < to;
    if (this.#heads.every((head) => head.every(isKept))) return this;
    return new OutlierPool(this.#heads.map((head) => head.filter(isKept)));
  }

  /**
   * Which tokens of a tile become outliers.
   * @param count how many tokens of a head are in its pool
   * @param norms sums of magnitudes of K, `[kvHeads, group]`
   * @returns by KV head, ascending: their places in the tile
   */
  choose(count: number, norms: Float64Array): number[][] {
    const group = norms.length / this.#heads.length;
    return this.#heads.map((head, i) => {
      const held = head.map(({ norm }) => norm);
      return choose(held, norms.subarray(i * group, (i + 1) * group), count);
    });
  }

  /**
   * With the tokens chosen of a tile.
   * @param start position of the tile's first token
   * @param chosen what {@link choose} returned
   * @param read binary16 bits of a token, `[2 (K, V), headDim]`
   */
  with(
    start: number,
    chosen: readonly (readonly number[])[],
    read: (head: number, token: number) => Uint16Array,
  ): OutlierPool {
    if (chosen.every(({ length }) => length === 0)) return this;
    const heads = this.#heads.map((head, i) => {
      return [...head, ...chosen[i].map((place) => makeOutlier(start + place, read(i, place)))];
    });
    return new OutlierPool(heads);
  }
}

/** @param held norms of the tokens that a head holds already */
function choose(held: readonly number[], norms: Float64Array, count: number): number[] {
  const pool = [...held].sort((a, b) => a - b).slice(0, count);
  const room = mostOutliers(count, Infinity) - held.length;
  const isSmaller = (norm: number) => pool.length < count || norm < pool[pool.length - 1];
  const chosen: number[] = [];
  const candidates: number[] = [];
  norms.forEach((norm, place) => {
    if (isSmaller(norm)) candidates.push(place);
  });
  // Of equals the older one stays.
  for (const place of candidates.sort((a, b) => norms[a] - norms[b] || a - b)) {
    if (chosen.length === room || !isSmaller(norms[place])) break;
    if (pool.length === count) pool.pop();
    pool.push(norms[place]);
    pool.sort((a, b) => a - b);
    chosen.push(place);
  }
  return chosen.sort((a, b) => a - b);
}

function makeOutlier(position: number, token: Uint16Array): Outlier {
  let norm = 0;
  // Not rounded: f64 holds sums of so many binary16.
  for (let i = 0; i < token.length / 2; i++) norm += Math.abs(fromHalf(token[i]));
  return { position, norm, token };
}
