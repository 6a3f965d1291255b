/** How sure a ratio is. */

/** A ratio and where it lies with 95 % confidence. */
export interface Interval {
  readonly ratio: number;
  readonly least: number;
  readonly most: number;
}

const DRAWS = 2000;

/**
 * The sum of some numbers over that of others, paired with them, and its 95 % interval: what 2,000 draws of as many pairs, with
 * replacement, by groups, give. Always the same for the same numbers.
 * @param groups of pairs, such as the blocks of each text: `[over, under]`
 */
export function ratioOf(groups: readonly (readonly (readonly [number, number])[])[]): Interval {
  const random = randomFrom(1);
  const sums = (pairs: readonly (readonly [number, number])[]): number => {
    const total = (i: 0 | 1): number => pairs.reduce((sum, pair) => sum + pair[i], 0);
    return total(0) / total(1);
  };
  const draws = Array.from({ length: DRAWS }, () =>
    sums(groups.flatMap((group) => group.map(() => group[Math.floor(random() * group.length)]))),
  ).sort((a, b) => a - b);
  return {
    ratio: sums(groups.flat()),
    least: draws[Math.floor(0.025 * DRAWS)],
    most: draws[Math.ceil(0.975 * DRAWS) - 1],
  };
}

/** Numbers from 0 to below 1: xorshift32. */
function randomFrom(seed: number): () => number {
  let x = seed;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) / 2 ** 32;
  };
}
