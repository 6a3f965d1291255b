/**
 * Presets and the record layout. The only place that knows byte offsets.
 */
import { describe, KvarnError } from "./errors.js";

/** Bits per code that a record can hold. */
export type Bits = 2 | 3 | 4 | 5 | 6 | 8;
export const BIT_WIDTHS: readonly Bits[] = [2, 3, 4, 5, 6, 8];

/** Tokens per tile. */
export type Group = 64 | 128;
export const GROUPS: readonly Group[] = [64, 128];

/** The preset of a cache or codec call that names none. */
export const DEFAULT_PRESET = "k4v2_g128";

/** How tiles are encoded, made by {@link parsePreset}. */
export interface Preset {
  /** `k{keyBits}v{valueBits}_g{group}`. */
  readonly name: string;
  /** Bits per code of K. */
  readonly keyBits: Bits;
  /** Bits per code of V. */
  readonly valueBits: Bits;
  /** Tokens per tile. */
  readonly group: Group;
}

/**
 * Reads a preset string: `k{b}v{b}_g{64|128}` with b one of 2, 3, 4, 5, 6, 8.
 * @param name default `k4v2_g128`
 * @throws {KvarnError} `unsupported-preset`
 */
export function parsePreset(name: unknown = DEFAULT_PRESET): Preset {
  const match = typeof name === "string" ? /^k([234568])v([234568])_g(64|128)$/.exec(name) : null;
  if (!match) {
    throw new KvarnError(
      "unsupported-preset",
      `preset must be k{b}v{b}_g{64|128} with b one of ${BIT_WIDTHS.join(", ")}, got ${describe(name)}`,
    );
  }
  return {
    name: match[0],
    keyBits: Number(match[1]) as Bits,
    valueBits: Number(match[2]) as Bits,
    group: Number(match[3]) as Group,
  };
}

function checkPreset(preset: Preset): Preset {
  const known =
    (BIT_WIDTHS as readonly unknown[]).includes(preset?.keyBits) &&
    (BIT_WIDTHS as readonly unknown[]).includes(preset?.valueBits) &&
    (GROUPS as readonly unknown[]).includes(preset?.group);
  if (known) return preset;
  throw new KvarnError(
    "unsupported-preset",
    `preset must be what parsePreset returns, got ${describe(preset)}`,
  );
}

/** Whether a tile can have as many rows or columns: a multiple of 16 from 16 to 512. */
export function isTileSide(value: unknown): value is number {
  return typeof value === "number" && value >= 16 && value <= 512 && value % 16 === 0;
}

/** Checks a head size: a multiple of 16 from 16 to 512. */
export function checkHeadDim(value: unknown, name = "headDim"): number {
  if (!isTileSide(value)) {
    throw new KvarnError(
      "unsupported-head-dim",
      `${name} must be a multiple of 16 from 16 to 512, got ${describe(value)}`,
    );
  }
  return value;
}

/**
 * Length of the blocks in which a head is rotated: the whole head for powers of two, else its largest power-of-two
 * divisor (80: 16, 96: 32, 112: 16).
 */
export function rotationBlock(headDim: number): number {
  return headDim & -headDim;
}

/** Byte offsets of one record: a K tile and its V tile. All scales are binary16, little-endian. */
export interface RecordLayout {
  /** Channels of one head. */
  readonly headDim: number;
  /** Tokens of one tile. */
  readonly group: number;
  /** Bits per code of K. */
  readonly keyBits: number;
  /** Bits per code of V. */
  readonly valueBits: number;
  /** `[headDim, group]` codes of keyBits each. */
  readonly kCodes: number;
  /** `[headDim]` */
  readonly kScale: number;
  /** `[headDim]` */
  readonly kZero: number;
  /** `[group]` */
  readonly kToken: number;
  /** `[group, headDim]` codes of valueBits each. */
  readonly vCodes: number;
  /** `[headDim]` */
  readonly vScale: number;
  /** `[group]` */
  readonly vToken: number;
  /** `[group]` */
  readonly vZero: number;
  /** Bytes of one record. */
  readonly bytes: number;
  /** Bytes of one record as vLLM spaces them, see {@link RecordPadding}. */
  readonly paddedBytes: number;
}

/**
 * How records follow one another: `"none"`, or `"vllm"` as its paged cache lays them out. There, from a head size of
 * 256 on, a record takes the next power of two of bytes per token; what is left over lies behind it, zero.
 */
export type RecordPadding = "none" | "vllm";

/**
 * Where the fields of a record lie.
 * @param preset what {@link parsePreset} returned
 * @throws {KvarnError} `unsupported-preset`, `unsupported-head-dim`
 */
export function recordLayout(preset: Preset, headDim: number): RecordLayout {
  const { keyBits, valueBits, group } = checkPreset(preset);
  checkHeadDim(headDim);
  const perChannel = 2 * headDim;
  const perToken = 2 * group;
  const kScale = (headDim * group * keyBits) / 8;
  const kZero = kScale + perChannel;
  const kToken = kZero + perChannel;
  const vCodes = kToken + perToken;
  const vScale = vCodes + (group * headDim * valueBits) / 8;
  const vToken = vScale + perChannel;
  const vZero = vToken + perToken;
  const bytes = vZero + perToken;
  const perTokenPadded = 2 ** Math.ceil(Math.log2(bytes / group));
  // One literal: spreading one object into another takes microseconds, and encoding a tile only tens of them.
  return {
    headDim,
    group,
    keyBits,
    valueBits,
    kCodes: 0,
    kScale,
    kZero,
    kToken,
    vCodes,
    vScale,
    vToken,
    vZero,
    bytes,
    paddedBytes: headDim >= 256 ? perTokenPadded * group : bytes,
  };
}

/** Distance from one record to the next. */
export function recordStride(layout: RecordLayout, padding: unknown = "none"): number {
  if (padding === "none") return layout.bytes;
  if (padding === "vllm") return layout.paddedBytes;
  throw new KvarnError("invalid-argument", `padding must be "none" or "vllm", got ${describe(padding)}`);
}

/** Copies `count` records from one spacing to another; bytes between records are left as they are in `target`. */
export function respaceRecords(
  source: Uint8Array,
  sourceStride: number,
  target: Uint8Array,
  targetStride: number,
  count: number,
  bytes: number,
): Uint8Array {
  for (let i = 0; i < count; i++) {
    target.set(source.subarray(i * sourceStride, i * sourceStride + bytes), i * targetStride);
  }
  return target;
}

/** Finds a NaN or infinite scale in a record: its byte offset, or -1. Such a record decodes to nothing useful. */
export function findBadScale(record: Uint8Array, layout: RecordLayout): number {
  const sections = [
    [layout.kScale, layout.vCodes],
    [layout.vScale, layout.bytes],
  ];
  for (const [start, end] of sections) {
    for (let at = start; at < end; at += 2) {
      // All exponent bits set: the high byte holds them, 0x7c, under the sign.
      if ((record[at + 1] & 0x7c) === 0x7c) return at;
    }
  }
  return -1;
}
