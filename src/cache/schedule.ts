/**
 * When tokens become records and when they are let go. All of it follows from a layer's length at the moment of an
 * append (or flush), so caches that saw the same tokens agree however those were divided into appends.
 */

/**
 * Tiles, counted from the first token, that an append finding a layer of `length` tokens wants done: every tile
 * `k >= 1` below the result is a record from then on. Tile 0 is the sink.
 */
export function encodedTiles(length: number, exactWindow: number, group: number): number {
  return Math.max(0, Math.floor((length - exactWindow) / group));
}

/** Outlier tokens that a KV head keeps beyond those that are the smallest at the time. */
const EXTRA_OUTLIERS = 32;

/** How many outlier tokens a KV head can have of so many tiles, with `outlierTokens` asked for. */
export function mostOutliers(outlierTokens: number, tiles: number): number {
  return outlierTokens === 0 ? 0 : Math.min(outlierTokens * tiles, outlierTokens + EXTRA_OUTLIERS);
}

/** First position that a query at `position` sees. */
export function visibleFrom(position: number, slidingWindow: number): number {
  return Math.max(0, position - slidingWindow + 1);
}

/**
 * First position that a query of the newest token or of a later one can see, after a rollback of `exactWindow` tokens
 * too; tiles that end at or before it can go.
 */
export function keptFrom(length: number, exactWindow: number, slidingWindow: number): number {
  return visibleFrom(length - exactWindow - 1, slidingWindow);
}
