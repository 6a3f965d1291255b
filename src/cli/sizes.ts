/** The memory calculator, of the command line and of the demo page: what presets make of a model's cache. */
import { bytesFor, type CacheBytes } from "../bytes.js";
import { formatFactor, formatInteger, formatNumber } from "./text.js";

/** All that a cache's size depends on, beside the preset. */
export interface SizeQuestion {
  layers: number;
  kvHeads: number;
  headDim: number;
  /** Context length. */
  tokens: number;
  /** Newest tokens that are never encoded. */
  exactWindow: number;
}

/** What one preset makes of it. */
export interface PresetSize extends CacheBytes {
  preset: string;
  /** All overhead included. */
  bitsPerValue: number;
}

/** Presets worth a look, from the smallest records to the largest. */
export const USUAL_PRESETS = ["k2v2_g128", "k4v2_g128", "k4v4_g128", "k5v4_g128", "k8v8_g128"] as const;

/**
 * Sizes by preset, as `bytesFor` says them.
 * @throws {KvarnError} as `bytesFor`
 */
export function sizesOf(question: SizeQuestion, presets: readonly string[]): PresetSize[] {
  const { tokens, ...shape } = question;
  return presets.map((preset) => {
    // How many query heads there are makes no difference.
    const bytes = bytesFor({ ...shape, preset, queryHeads: shape.kvHeads }, tokens);
    return { preset, bitsPerValue: 16 / bytes.ratio, ...bytes };
  });
}

/** Titles of {@link sizeCells}. */
export const SIZE_TITLES = ["preset", "exact", "records", "total", "smaller", "bits/value"] as const;

/** What a table has of one preset: MiB, and of how many times and bits. */
export function sizeCells(size: PresetSize): string[] {
  const { preset, sinkBytes, tailBytes, recordBytes, totalBytes, ratio, bitsPerValue } = size;
  const mebibytes = [sinkBytes + tailBytes, recordBytes, totalBytes].map(formatMebibytes);
  return [preset, ...mebibytes, formatFactor(ratio), formatNumber(bitsPerValue)];
}

/** One decimal below a hundred, or three digits of less than one. */
export function formatMebibytes(bytes: number): string {
  const size = bytes / 2 ** 20;
  if (size < 1) return formatNumber(size);
  return size < 100 ? size.toFixed(1) : formatInteger(size);
}
