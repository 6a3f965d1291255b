import { dequantize, quantize } from "../reference/pack.js";
import { checkGroups } from "./groups.js";
import { roundToHalf } from "./half-precision.js";
import type { Quantizer, StoredRows } from "./method.js";

/** How an affine quantizer groups and rounds. */
export interface AffineOptions {
  /** Bits of one code, 1 to 8. */
  readonly bits: number;
  /** Which elements share a scale and a zero point: some tokens' of one channel, or some channels' of one token. */
  readonly axis: "channel" | "token";
  /** How many; divides the tokens, or the head size. */
  readonly group: number;
  /** What lies beyond this factor times a group's lowest or highest value is moved there. Default 1. */
  readonly clip?: number;
  /** Bits of a scale, and of a zero point; those of 32 are not rounded. Default 16. */
  readonly scaleBits?: 16 | 32;
}

/**
 * Rounds each group to evenly spaced values between its lowest and its highest (asymmetric round-to-nearest) and stores
 * `code * scale + zero`. Codes come from the unrounded scale, as in KVarN's records.
 *
 * Source: KIVI, arXiv 2402.02750, for the two axes; the clip is QuaRot's, arXiv 2404.00456.
 */
export function affine(options: AffineOptions): Quantizer {
  return (rows, headDim) => {
    if (options.axis === "token") {
      checkGroups(options.group, headDim, "channels");
      return quantizeGroups(rows, options);
    }
    checkGroups(options.group, rows.length / headDim, "tokens");
    const grouped = groupByChannel(rows, headDim, options.group);
    const { rows: result, bits } = quantizeGroups(grouped, options);
    return { rows: ungroupChannels(result, headDim, options.group), bits };
  };
}

/** Each `group` consecutive elements are a group. */
function quantizeGroups(values: Float32Array, options: AffineOptions): StoredRows {
  const { bits, group, clip = 1, scaleBits = 16 } = options;
  const groups = values.length / group;
  const clipped = clip === 1 ? values : clipGroups(values, group, clip);
  const { codes, scale, zero } = quantize(clipped, groups, group, bits);
  const round = (scales: Float32Array): Float32Array => (scaleBits === 16 ? roundToHalf(scales) : scales);
  return {
    rows: dequantize({ codes, scale: round(scale), zero: round(zero) }),
    bits: values.length * bits + groups * 2 * scaleBits,
  };
}

function clipGroups(values: Float32Array, group: number, clip: number): Float32Array {
  const clipped = new Float32Array(values.length);
  for (let start = 0; start < values.length; start += group) {
    const line = values.subarray(start, start + group);
    const [lowest, highest] = [clip * Math.min(...line), clip * Math.max(...line)];
    for (let i = 0; i < group; i++) clipped[start + i] = Math.min(Math.max(line[i], lowest), highest);
  }
  return clipped;
}

/** `[tokens, headDim]` to `[tokens / group, headDim, group]`. */
function groupByChannel(rows: Float32Array, headDim: number, group: number): Float32Array {
  const grouped = new Float32Array(rows.length);
  for (let at = 0, first = 0; first < rows.length; first += group * headDim) {
    for (let channel = 0; channel < headDim; channel++) {
      for (let token = 0; token < group; token++) grouped[at++] = rows[first + token * headDim + channel];
    }
  }
  return grouped;
}

/** Undoes {@link groupByChannel}. */
function ungroupChannels(grouped: Float32Array, headDim: number, group: number): Float32Array {
  const rows = new Float32Array(grouped.length);
  for (let at = 0, first = 0; first < rows.length; first += group * headDim) {
    for (let channel = 0; channel < headDim; channel++) {
      for (let token = 0; token < group; token++) rows[first + token * headDim + channel] = grouped[at++];
    }
  }
  return rows;
}
