/** Outlier tokens for the attention kernels: hidden where they stand in records, and seen where they lie apart. */

/** Tokens of one tile, a bit for each: what `hideTokens` takes. */
type TileBits = [number, number, number, number];

/** Outlier tokens that one kernel call takes in, as if they stood at consecutive positions. */
export interface OutlierRun {
  /** The first, counted in the list. */
  readonly first: number;
  readonly tokens: number;
  /** What is to be taken for the position of the first. */
  readonly start: number;
}

/** By the position where a tile begins, the tokens of the tile among `positions`. */
export function hiddenTokens(positions: readonly number[], group: number): Map<number, TileBits> {
  const tiles = new Map<number, TileBits>();
  for (const position of positions) {
    const place = position % group;
    const bits = tiles.get(position - place) ?? [0, 0, 0, 0];
    bits[place >> 5] |= 1 << (place & 31);
    tiles.set(position - place, bits);
  }
  return tiles;
}

/**
 * How kernels, which know tokens at consecutive positions only, see those at `positions`: those that all queries see go
 * together, others one by one.
 * @param positions ascending, no more than there are tokens up to `from`
 * @param from position of the first query
 * @param to position of the last one
 * @param window how many tokens a query sees, its own the last
 */
export function outlierRuns(
  positions: readonly number[],
  from: number,
  to: number,
  window: number,
): OutlierRun[] {
  const runs: OutlierRun[] = [];
  const seenByAll = positions.filter((position) => position <= from && position > to - window).length;
  // They follow one another. No query is too early for them, and to none are they too far away, if they end with the first.
  const first = positions.findIndex((position) => position > to - window);
  if (seenByAll > 0) runs.push({ first, tokens: seenByAll, start: from + 1 - seenByAll });
  positions.forEach((position, i) => {
    const seen = position <= to && position > from - window;
    if (seen && !(i >= first && i < first + seenByAll)) runs.push({ first: i, tokens: 1, start: position });
  });
  return runs;
}
