import { checkInteger, describe, KvarnError } from "./errors.js";
import { fromHalf } from "./half.js";

/** What `Float16Array` offers of what is used here; Node 20 and the ES2023 library do not have the type. */
export interface Float16ArrayLike extends ArrayBufferView {
  /** Elements. */
  readonly length: number;
  /** 2 */
  readonly BYTES_PER_ELEMENT: number;
  /** What tells it from other arrays. */
  readonly [Symbol.toStringTag]: "Float16Array";
  [index: number]: number;
}

/** Numbers that callers pass in: f32, or binary16 as `Float16Array` or as raw bits in a `Uint16Array`. */
export type Tensor = Float32Array | Uint16Array | Float16ArrayLike;

/** A tensor as engines take it: f32 values or binary16 bits. */
export type TensorData = Float32Array | Uint16Array;

/** A tensor in a buffer of the engine's GPU device. */
export interface GpuTensor {
  /** With usage `STORAGE`. */
  readonly buffer: GPUBuffer;
  /** Bytes, a multiple of 4. Default 0. */
  readonly offset?: number;
  /** Of the elements; f16 is binary16. */
  readonly type: "f32" | "f16";
  /** Tokens that lie there, one after another. */
  readonly tokens: number;
}

/** Whether a caller means a tensor on a GPU. */
export function isGpuTensor(value: unknown): value is GpuTensor {
  return typeof value === "object" && value !== null && "buffer" in value && !ArrayBuffer.isView(value);
}

/**
 * Checks a tensor on a GPU.
 * @param width elements of one token
 */
export function checkGpuTensor(name: string, value: GpuTensor, width: number): GpuTensor {
  const { buffer, offset = 0, type, tokens } = value as Partial<GpuTensor>;
  const fail = (what: string): never => {
    throw new KvarnError("invalid-argument", `${name}.${what}`);
  };
  if (typeof buffer?.size !== "number") return fail(`buffer must be a GPUBuffer, got ${describe(buffer)}`);
  if ((buffer.usage & STORAGE) === 0) return fail("buffer must have the usage STORAGE");
  if (type !== "f32" && type !== "f16") return fail(`type must be "f32" or "f16", got ${describe(type)}`);
  if (!Number.isInteger(offset) || offset < 0 || offset % 4 !== 0) {
    return fail(`offset must be a multiple of 4 bytes, got ${describe(offset)}`);
  }
  checkInteger(`${name}.tokens`, tokens, 1, Number.MAX_SAFE_INTEGER);
  const bytes = tokens! * width * (type === "f32" ? 4 : 2);
  if (offset + bytes > buffer.size) {
    throw new KvarnError(
      "invalid-shape",
      `${name} needs ${bytes} bytes from byte ${offset} on, but its buffer has ${buffer.size}`,
    );
  }
  return value;
}

/** `GPUBufferUsage.STORAGE`, which is not there where WebGPU is not. */
const STORAGE = 0x80;

/** Views a caller's array as f32 or binary16 bits, without copying. */
export function asTensorData(name: string, value: unknown): TensorData {
  if (value instanceof Float32Array || value instanceof Uint16Array) return value;
  if (isFloat16Array(value)) return new Uint16Array(value.buffer, value.byteOffset, value.length);
  throw new KvarnError(
    "invalid-argument",
    `${name} must be a Float32Array, a Float16Array, or a Uint16Array of binary16 bits, got ${describe(value)}`,
  );
}

/** A copy of `data` as f32 values. */
export function toFloat32(data: TensorData): Float32Array {
  return data instanceof Float32Array ? data.slice() : Float32Array.from(data, fromHalf);
}

/** One element of a tensor, as a number. */
export function valueAt(data: TensorData, index: number): number {
  return data instanceof Float32Array ? data[index] : fromHalf(data[index]);
}

/** Throws unless `value` is a Float32Array of `length`, or missing; then makes one. */
export function checkOut(name: string, value: unknown, length: number): Float32Array {
  if (value === undefined) return new Float32Array(length);
  if (!(value instanceof Float32Array)) {
    throw new KvarnError("invalid-argument", `${name} must be a Float32Array, got ${describe(value)}`);
  }
  checkLength(name, value, length);
  return value;
}

export function checkLength(name: string, value: { length: number }, length: number, why = ""): void {
  if (value.length !== length) {
    throw new KvarnError("invalid-shape", `${name} must hold ${length} elements${why}, got ${value.length}`);
  }
}

/** Index of the first NaN or infinity, or -1. */
export function findNonFinite(data: Float32Array): number {
  // Zero times anything finite is zero: one plain loop where all is well, as nearly always.
  let sum = 0;
  for (let i = 0; i < data.length; i++) sum += data[i] * 0;
  return sum === 0 ? -1 : data.findIndex((value) => !Number.isFinite(value));
}

/** The error for a K or V row that is not finite, or not once rotated and rounded to binary16. */
export function nonFiniteError(
  name: string,
  data: TensorData,
  row: number,
  kvHeads: number,
  headDim: number,
): KvarnError {
  const where = `token ${Math.floor(row / kvHeads)}, head ${row % kvHeads}`;
  for (let channel = 0; channel < headDim; channel++) {
    const value = valueAt(data, row * headDim + channel);
    if (!Number.isFinite(value)) {
      return new KvarnError("non-finite", `${name} is ${value} at ${where}, channel ${channel}`);
    }
  }
  return new KvarnError(
    "non-finite",
    `${name} at ${where} is too long a vector: rotated, it exceeds 65504, the largest finite binary16`,
  );
}

function isFloat16Array(value: unknown): value is Float16ArrayLike {
  return (
    ArrayBuffer.isView(value) && (value as Partial<Float16ArrayLike>)[Symbol.toStringTag] === "Float16Array"
  );
}

/**
 * No value of q times the softmax scale may exceed this, so that no score overflows in f32: what a record can hold is
 * below 2^40, and a head has up to 512 channels.
 */
const MAX_QUERY = 1e20;

/** Throws unless all values are numbers that scores can be computed of. */
export function checkQueries(
  name: string,
  q: TensorData,
  heads: number,
  headDim: number,
  softmaxScale: number,
): void {
  const most = MAX_QUERY / Math.max(1, softmaxScale);
  for (let i = 0; i < q.length; i++) {
    // Not `>`: this catches NaN too.
    if (Math.abs(valueAt(q, i)) <= most) continue;
    const row = Math.floor(i / headDim);
    throw new KvarnError(
      "non-finite",
      `${name} is ${valueAt(q, i)} at token ${Math.floor(row / heads)}, head ${row % heads}, channel ${i % headDim}; ` +
        `values up to ${most} are allowed`,
    );
  }
}
