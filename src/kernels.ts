/** The single kernels on typed arrays, on any backend: checks here, arithmetic there. */
import type { Backend, Normalized, Packed, TileShape } from "./backend.js";
import { checkIterations } from "./config.js";
import { describe, KvarnError } from "./errors.js";
import { BIT_WIDTHS, checkHeadDim, isTileSide } from "./format.js";
import { asTensorData, checkLength, checkOut, findNonFinite, type Tensor, toFloat32 } from "./tensor.js";

/** Rows and columns of tiles: each a multiple of 16 from 16 to 512, together at most 65,536 elements (512 x 128). */
export interface TileOptions {
  /** Channels for K, tokens for V. */
  rows: number;
  /** Tokens for K, channels for V. */
  columns: number;
}

const MAX_TILE = 512 * 128;

/** See `Kvarn.rotate`. */
export async function rotate(
  backend: Backend,
  x: Tensor,
  options: { headDim: number; out?: Float32Array },
): Promise<Float32Array> {
  const data = asTensorData("x", x);
  const headDim = checkHeadDim(options?.headDim);
  if (data.length % headDim !== 0) {
    throw new KvarnError("invalid-shape", `x must hold rows of ${headDim} elements, got ${data.length}`);
  }
  const rows = data instanceof Float32Array ? data : toFloat32(data);
  const bad = findNonFinite(rows);
  if (bad >= 0) {
    throw new KvarnError(
      "non-finite",
      `x is ${rows[bad]} in row ${Math.floor(bad / headDim)}, channel ${bad % headDim}`,
    );
  }
  const out = checkOut("out", options.out, data.length);
  await backend.rotate(rows, headDim, out);
  return out;
}

/** See `Kvarn.normalize`. */
export async function normalize(
  backend: Backend,
  tiles: Tensor,
  options: TileOptions & { iterations?: number; out?: Partial<Normalized> },
): Promise<Normalized> {
  const { data, shape } = checkTiles("tiles", tiles, options);
  const iterations = checkIterations(options.iterations);
  const { out } = options;
  const result = {
    balanced: checkOut("out.balanced", out?.balanced, data.length),
    rowScale: checkOut("out.rowScale", out?.rowScale, shape.count * shape.rows),
    columnScale: checkOut("out.columnScale", out?.columnScale, shape.count * shape.columns),
  };
  await backend.normalize(data, shape, iterations, result);
  return result;
}

/** See `Kvarn.pack`. */
export async function pack(
  backend: Backend,
  balanced: Tensor,
  options: TileOptions & { bits: number; out?: Partial<Packed> },
): Promise<Packed> {
  const { data, shape } = checkTiles("balanced", balanced, options);
  const bits = checkBits(options.bits);
  const { out } = options;
  const rows = shape.count * shape.rows;
  const result = {
    codes: checkCodes("out.codes", out?.codes, (data.length * bits) / 8),
    scale: checkOut("out.scale", out?.scale, rows),
    zero: checkOut("out.zero", out?.zero, rows),
  };
  await backend.pack(data, shape, bits, result);
  return result;
}

export interface UnpackOptions extends TileOptions {
  /** Bits per code: 2, 3, 4, 5, 6 or 8. */
  bits: number;
}

/** See `Kvarn.unpack`. */
export function unpack(
  backend: Backend,
  packed: { codes: Uint8Array },
  options: UnpackOptions & { raw: true; out?: Uint8Array },
): Promise<Uint8Array>;
export function unpack(
  backend: Backend,
  packed: Packed,
  options: UnpackOptions & { raw?: false; out?: Float32Array },
): Promise<Float32Array>;
export async function unpack(
  backend: Backend,
  packed: Partial<Packed>,
  options: UnpackOptions & { raw?: boolean; out?: Uint8Array | Float32Array },
): Promise<Uint8Array | Float32Array> {
  const bits = checkBits(options?.bits);
  const { rows, columns } = checkTileOptions(options);
  const codes = checkCodes("codes", packed?.codes ?? null);
  const bytesPerTile = (rows * columns * bits) / 8;
  const count = codes.length / bytesPerTile;
  if (!Number.isInteger(count)) {
    throw new KvarnError(
      "invalid-shape",
      `codes must hold whole tiles of ${bytesPerTile} bytes, got ${codes.length}`,
    );
  }
  const shape = { rows, columns, count };
  const length = count * rows * columns;
  if (options.raw) {
    const out = checkCodes("out", options.out, length);
    await backend.unpackCodes(codes, shape, bits, out);
    return out;
  }
  const scale = checkScale("scale", packed.scale, count * rows);
  const zero = checkScale("zero", packed.zero, count * rows);
  const out = checkOut("out", options.out, length);
  await backend.unpack({ codes, scale, zero }, shape, bits, out);
  return out;
}

function checkTileOptions(options: TileOptions): TileOptions {
  for (const name of ["rows", "columns"] as const) {
    const value: unknown = options?.[name];
    if (!isTileSide(value)) {
      throw new KvarnError(
        "invalid-argument",
        `${name} must be a multiple of 16 from 16 to 512, got ${describe(value)}`,
      );
    }
  }
  if (options.rows * options.columns > MAX_TILE) {
    throw new KvarnError(
      "invalid-argument",
      `rows x columns must be at most ${MAX_TILE}, got ${options.rows} x ${options.columns}`,
    );
  }
  return options;
}

/** Views tiles as f32, checks their shape, and that they are finite. */
function checkTiles(
  name: string,
  tiles: Tensor,
  options: TileOptions,
): { data: Float32Array; shape: TileShape } {
  const tensor = asTensorData(name, tiles);
  const { rows, columns } = checkTileOptions(options);
  const count = tensor.length / (rows * columns);
  if (!Number.isInteger(count)) {
    throw new KvarnError(
      "invalid-shape",
      `${name} must hold whole tiles of ${rows} x ${columns} elements, got ${tensor.length}`,
    );
  }
  const data = tensor instanceof Float32Array ? tensor : toFloat32(tensor);
  const bad = findNonFinite(data);
  if (bad >= 0) {
    const tile = Math.floor(bad / (rows * columns));
    const row = Math.floor(bad / columns) % rows;
    throw new KvarnError(
      "non-finite",
      `${name} is ${data[bad]} in tile ${tile}, row ${row}, column ${bad % columns}`,
    );
  }
  return { data, shape: { rows, columns, count } };
}

function checkBits(value: unknown): number {
  if (!(BIT_WIDTHS as readonly unknown[]).includes(value)) {
    throw new KvarnError(
      "invalid-argument",
      `bits must be one of ${BIT_WIDTHS.join(", ")}, got ${describe(value)}`,
    );
  }
  return value as number;
}

function checkScale(name: string, value: unknown, length: number): Float32Array {
  if (value === undefined) {
    throw new KvarnError(
      "invalid-argument",
      `${name} must be a Float32Array; it may be left out with raw: true`,
    );
  }
  return checkOut(name, value, length);
}

function checkCodes(name: string, value: unknown, length?: number): Uint8Array {
  if (value === undefined && length !== undefined) return new Uint8Array(length);
  if (!(value instanceof Uint8Array)) {
    throw new KvarnError("invalid-argument", `${name} must be a Uint8Array, got ${describe(value)}`);
  }
  if (length !== undefined) checkLength(name, value, length);
  return value;
}
