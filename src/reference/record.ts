import type { RecordLayout } from "../format.js";
import { fromHalf, HALF_MAX, toHalf } from "../half.js";
import { normalize, type NormalizedTile } from "./normalize.js";
import { packCodes, quantize, type Quantized, unpackCodes } from "./pack.js";
import { keyRanges, queryFeedback, refine, tokenFeedback } from "./refine.js";

/** Some consecutive tokens of one KV head, in the rotated frame. */
export interface TokenRows {
  /** `[tokens, headDim]` */
  readonly keys: Float32Array | Float64Array;
  /** `[tokens, headDim]` */
  readonly values: Float32Array | Float64Array;
}

/**
 * Encodes one tile of K and V into a record.
 *
 * Source: arXiv 2606.03458; fields and their order as in vLLM's KVarN.
 * @param tokens `layout.group` tokens, rotated and already rounded to binary16
 * @param iterations of {@link normalize}
 * @returns `layout.bytes` bytes
 */
export function encodeRecord(tokens: TokenRows, layout: RecordLayout, iterations: number): Uint8Array {
  const { headDim, group } = layout;
  const keyTile = transpose(tokens.keys, group, headDim);
  const valueTile = Float32Array.from(tokens.values);
  return encodeBalanced(
    normalize(keyTile, headDim, group, iterations),
    normalize(valueTile, group, headDim, iterations),
    layout,
  );
}

/**
 * Rounds and packs two normalized tiles into a record: the second half of {@link encodeRecord}, for whoever has
 * scales of another origin.
 * @param keys channel-major: `[headDim, group]`
 * @param values token-major: `[group, headDim]`
 * @returns `layout.bytes` bytes
 */
export function encodeBalanced(
  keys: NormalizedTile,
  values: NormalizedTile,
  layout: RecordLayout,
): Uint8Array {
  const { headDim, group, keyBits, valueBits } = layout;
  const k = quantize(keys.balanced, headDim, group, keyBits);
  const v = quantize(values.balanced, group, headDim, valueBits);
  return packRecord({ codes: k.codes, ...absorb(keys, k) }, { codes: v.codes, ...absorb(values, v) }, layout);
}

/**
 * As {@link encodeRecord}, with scales and codes chosen for what attention makes of them: see {@link refine}.
 * @param moment `[headDim, headDim]`: see {@link queryFeedback}; none: as if no queries were known
 */
export function refineRecord(
  tokens: TokenRows,
  layout: RecordLayout,
  iterations: number,
  moment?: ArrayLike<number>,
): Uint8Array {
  const { headDim, group, keyBits, valueBits } = layout;
  const keyTile = transpose(tokens.keys, group, headDim);
  const valueTile = Float32Array.from(tokens.values);
  const keyFeedback = moment && queryFeedback(moment, headDim, group);
  return packRecord(
    refine(keyTile, headDim, group, keyBits, iterations, keyFeedback, keyRanges(keyBits)),
    refine(valueTile, group, headDim, valueBits, iterations, tokenFeedback(group, headDim, valueBits)),
    layout,
  );
}

/** What a record holds of a tile. */
interface TileFields {
  readonly codes: Uint8Array;
  readonly rowScale: ArrayLike<number>;
  readonly rowZero: ArrayLike<number>;
  readonly columnScale: ArrayLike<number>;
}

function packRecord(k: TileFields, v: TileFields, layout: RecordLayout): Uint8Array {
  const record = new Uint8Array(layout.bytes);
  record.set(packCodes(k.codes, layout.keyBits), layout.kCodes);
  writeScales(record, layout.kScale, k.rowScale);
  writeScales(record, layout.kZero, k.rowZero);
  writeScales(record, layout.kToken, k.columnScale);
  record.set(packCodes(v.codes, layout.valueBits), layout.vCodes);
  writeScales(record, layout.vScale, v.columnScale);
  writeScales(record, layout.vToken, v.rowScale);
  writeScales(record, layout.vZero, v.rowZero);
  return record;
}

/**
 * Decodes one record, in f64: `K = (code * kScale + kZero) * kToken`, `V = (code * vToken + vZero) * vScale`.
 * @param record `layout.bytes` bytes
 * @returns `layout.group` tokens, in the rotated frame
 */
export function decodeRecord(record: Uint8Array, layout: RecordLayout): TokenRows {
  const { headDim, group, keyBits, valueBits } = layout;
  const kCodes = unpackCodes(record.subarray(layout.kCodes, layout.kScale), keyBits);
  const kScale = readScales(record, layout.kScale, headDim);
  const kZero = readScales(record, layout.kZero, headDim);
  const kToken = readScales(record, layout.kToken, group);
  const vCodes = unpackCodes(record.subarray(layout.vCodes, layout.vScale), valueBits);
  const vScale = readScales(record, layout.vScale, headDim);
  const vToken = readScales(record, layout.vToken, group);
  const vZero = readScales(record, layout.vZero, group);

  const keys = new Float64Array(group * headDim);
  const values = new Float64Array(group * headDim);
  for (let token = 0; token < group; token++) {
    for (let channel = 0; channel < headDim; channel++) {
      const i = token * headDim + channel;
      keys[i] = (kCodes[channel * group + token] * kScale[channel] + kZero[channel]) * kToken[token];
      values[i] = (vCodes[i] * vToken[token] + vZero[token]) * vScale[channel];
    }
  }
  return { keys, values };
}

/** `[rows, columns]` to `[columns, rows]` */
function transpose(matrix: ArrayLike<number>, rows: number, columns: number): Float32Array {
  return Float32Array.from(
    { length: rows * columns },
    (_, i) => matrix[(i % rows) * columns + Math.floor(i / rows)],
  );
}

/**
 * A record's scales of one tile: row scales times what rounding found for the balanced rows; f32, and only then binary16.
 * Where a zero point exceeds binary16, as those of an even tile near 65504 do, the rows' scales are halved and the
 * columns' doubled: the product stays.
 * @internal
 */
export function absorb(
  { rowScale, columnScale }: NormalizedTile,
  { scale, zero }: Quantized,
): { rowScale: Float32Array; rowZero: Float32Array; columnScale: Float32Array } {
  const rowZero = zero.map((value, row) => rowScale[row] * value);
  const half = rowZero.some((value) => Math.abs(value) > HALF_MAX) ? 0.5 : 1;
  return {
    rowScale: scale.map((value, row) => rowScale[row] * value * half),
    rowZero: rowZero.map((value) => value * half),
    columnScale: columnScale.map((value) => value / half),
  };
}

function writeScales(record: Uint8Array, offset: number, scales: ArrayLike<number>): void {
  const view = new DataView(record.buffer, record.byteOffset, record.byteLength);
  for (let i = 0; i < scales.length; i++) view.setUint16(offset + 2 * i, toHalf(scales[i]), true);
}

function readScales(record: Uint8Array, offset: number, count: number): Float64Array {
  const view = new DataView(record.buffer, record.byteOffset, record.byteLength);
  return Float64Array.from({ length: count }, (_, i) => fromHalf(view.getUint16(offset + 2 * i, true)));
}
