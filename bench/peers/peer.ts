/** What the benchmarks know of others who attend over a cache. */
import { relativeError } from "../../src/conformance/compare.js";
import type { Contender } from "../timing.js";

/** The attention to do: of the newest query tokens over all tokens. */
export interface Work {
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Tokens of the cache, those with queries among them. */
  readonly tokens: number;
  /** Query tokens. */
  readonly queries: number;
  /** K and V of all tokens in order, `[tokens, kvHeads, headDim]` each, from the start at each call. */
  readonly chunks: () => Iterable<{ k: Float32Array; v: Float32Array }>;
  /** `[queries, queryHeads, headDim]` */
  readonly q: Float32Array;
  /** What attention over the uncompressed tokens gives for `q`. */
  readonly expected: Float32Array;
}

/** A peer with a full cache. */
export interface OpenPeer extends Contender {
  /** Gives back what the garbage collector does not. */
  close?(): Promise<void>;
}

/** One way to attend that somebody else ships. */
export interface Peer {
  /** With its version, where it is installed. */
  readonly backend: string;
  /** Of several ways that it has. */
  readonly variant: string;
  /** Whether ours may be compared with it: what computes on other terms is there to see. */
  readonly isBaseline: boolean;
  /**
   * Fills a cache of its own.
   * @throws {PeerError} that says why it cannot, or that what it computes is not attention over the same tokens
   */
  open(work: Work): Promise<OpenPeer>;
}

/** Why a peer does not run a case. */
export class PeerError extends Error {}

/** Why it runs none. */
export class AbsentError extends PeerError {}

/** Throws where a result is further from the right one than rounding and quantization explain. */
export function checkResult(result: Float32Array, expected: Float32Array, most: number): void {
  const error = relativeError(result, expected);
  // Not `>`: this catches NaN, too.
  if (!(error <= most)) {
    throw new PeerError(`its result differs by ${error.toPrecision(3)}, more than ${most}`);
  }
}

/** The first line of whatever was thrown. */
export function reasonOf(error: unknown): string {
  return String(error instanceof Error ? error.message : error).split("\n", 1)[0];
}
