/** How the tiles that some query tokens see are divided among workgroups, and the partial results that come of it. */
import type { Binding } from "./gpu.js";

/** Query tokens of a request whose partial results fit. */
interface Chunk {
  /** The first. */
  readonly token: number;
  /** Query heads times query tokens of a KV head. */
  readonly rows: number;
  /** Of rows, the last made complete. */
  readonly blocks: number;
  /** Most slots for partial results. */
  readonly mostSlots: number;
  /** Room for the partial results of so many splits. */
  readonly room: (slots: number) => Partials;
}

/** Partial results, as attend-combine reads them. */
export interface Partials {
  readonly slots: number;
  readonly partials: Binding;
  readonly totals: Binding;
}

/** Enqueues what makes a chunk's partial results. */
export type AttendChunk = (chunk: Chunk) => Partials;

/** Most tokens of a split, where there is room for the splits: f32 sums over more of them lose digits. */
const SPLIT_TOKENS = 8192;
/** A window that no position leaves: positions are below 2^31. */
const NO_WINDOW = 2 ** 31 - 1;

/** As kernels want it. */
export function windowWord(slidingWindow: number): number {
  return Math.min(slidingWindow, NO_WINDOW);
}

/**
 * Into how many splits so many tokens go at most.
 * @param most how many there is room for
 * @param groups workgroups that are wanted, of which there are so many a split
 */
export function mostSplits(tokens: number, most: number, groups: number, groupsPerSplit: number): number {
  const wanted = Math.max(Math.ceil(groups / groupsPerSplit), Math.ceil(tokens / SPLIT_TOKENS));
  return Math.max(1, Math.min(most, wanted));
}

/** Divides tiles or pieces, of which a workgroup takes `atOnce` at a time, into splits. */
export function split(count: number, atOnce: number, most: number): { splits: number; each: number } {
  const steps = Math.ceil(count / atOnce);
  const each = Math.ceil(steps / Math.max(1, Math.min(steps, most))) * atOnce;
  return { splits: count === 0 ? 0 : Math.ceil(count / each), each };
}

/** Exact tiles, three words each as requests have them, in pieces of at most so many tokens. */
export function cut(tiles: Uint32Array, wordsPerToken: number, most: number): Uint32Array<ArrayBuffer> {
  const pieces: number[] = [];
  for (let i = 0; i < tiles.length; i += 3) {
    const [start, position, tokens] = tiles.subarray(i, i + 3);
    for (let token = 0; token < tokens; token += most) {
      pieces.push(start + token * wordsPerToken, position + token, Math.min(most, tokens - token));
    }
  }
  return Uint32Array.from(pieces);
}
