/** Records read and decoded as plainly as their description has it, for comparison; not by the code of any engine. */
import { type RecordLayout, rotationBlock } from "../format.js";
import { fromHalf } from "../half.js";

/** One tile as a record holds it: `element = (code * scale[row] + zero[row]) * column[column]`. */
export interface StoredTile {
  /** `[rows, columns]` */
  readonly codes: Uint8Array;
  /** Names by which the scale vectors go in the layout. */
  readonly names: { readonly scale: string; readonly zero: string; readonly column: string };
  /** `[rows]` */
  readonly scale: Float64Array;
  /** `[rows]` */
  readonly zero: Float64Array;
  /** `[columns]` */
  readonly column: Float64Array;
}

/** Takes a record apart. */
export function readRecord(
  record: Uint8Array,
  layout: RecordLayout,
): { keys: StoredTile; values: StoredTile } {
  const { headDim, group } = layout;
  const halves = (offset: number, count: number) =>
    Float64Array.from({ length: count }, (_, i) =>
      fromHalf(record[offset + 2 * i] + 256 * record[offset + 2 * i + 1]),
    );
  return {
    keys: {
      codes: readBits(record.subarray(layout.kCodes, layout.kScale), layout.keyBits),
      names: { scale: "kScale", zero: "kZero", column: "kToken" },
      scale: halves(layout.kScale, headDim),
      zero: halves(layout.kZero, headDim),
      column: halves(layout.kToken, group),
    },
    values: {
      codes: readBits(record.subarray(layout.vCodes, layout.vScale), layout.valueBits),
      names: { scale: "vToken", zero: "vZero", column: "vScale" },
      scale: halves(layout.vToken, group),
      zero: halves(layout.vZero, group),
      column: halves(layout.vScale, headDim),
    },
  };
}

/** Reads a little-endian bit stream bit by bit. */
function readBits(bytes: Uint8Array, bits: number): Uint8Array {
  const codes = new Uint8Array((bytes.length * 8) / bits);
  for (let position = 0; position < codes.length * bits; position++) {
    const bit = (bytes[position >> 3] >> (position & 7)) & 1;
    codes[Math.floor(position / bits)] |= bit << (position % bits);
  }
  return codes;
}

/** What a record holds in the rotated frame, `[group, headDim]` each, in f64. */
export function decodePlainly(
  record: Uint8Array,
  layout: RecordLayout,
): { k: Float64Array; v: Float64Array } {
  const { headDim, group } = layout;
  const { keys, values } = readRecord(record, layout);
  const k = new Float64Array(group * headDim);
  decodeTile(keys).forEach((x, i) => (k[(i % group) * headDim + Math.floor(i / group)] = x));
  return { k, v: decodeTile(values) };
}

/** `[rows, columns]` */
export function decodeTile({ codes, scale, zero, column }: StoredTile): Float64Array {
  const columns = column.length;
  return Float64Array.from(codes, (code, i) => {
    const row = Math.floor(i / columns);
    return (code * scale[row] + zero[row]) * column[i % columns];
  });
}

/** What some records hold, rotated back: `[tokens, kvHeads, headDim]` each, in f64. */
export function decodeRecords(
  records: Uint8Array,
  kvHeads: number,
  layout: RecordLayout,
): { k: Float64Array; v: Float64Array } {
  const { headDim, group, bytes } = layout;
  const count = records.length / bytes;
  const k = new Float64Array(count * group * headDim);
  const v = new Float64Array(count * group * headDim);
  for (let i = 0; i < count; i++) {
    const head = i % kvHeads;
    const first = ((i - head) / kvHeads) * group;
    const rows = decodePlainly(records.subarray(i * bytes, (i + 1) * bytes), layout);
    for (const [source, target] of [
      [rows.k, k],
      [rows.v, v],
    ]) {
      rotateBack(source, headDim);
      for (let token = 0; token < group; token++) {
        const row = source.subarray(token * headDim, (token + 1) * headDim);
        target.set(row, ((first + token) * kvHeads + head) * headDim);
      }
    }
  }
  return { k, v };
}

/** The Walsh-Hadamard transform of rows, in place and in f64. */
function rotateBack(rows: Float64Array, headDim: number): void {
  const n = rotationBlock(headDim);
  for (let stride = 1; stride < n; stride *= 2) {
    for (let i = 0; i < rows.length; i++) {
      if ((i & stride) !== 0) continue;
      const [a, b] = [rows[i], rows[i + stride]];
      rows[i] = a + b;
      rows[i + stride] = a - b;
    }
  }
  for (let i = 0; i < rows.length; i++) rows[i] /= Math.sqrt(n);
}
