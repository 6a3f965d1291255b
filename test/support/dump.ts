/** Dumps of keys, values and queries that tests make, as safetensors files. */
import { toHalf } from "../../src/half.js";

export interface Tensor {
  shape: readonly number[];
  data: Float32Array;
}

export type Dtype = "F32" | "F16" | "BF16";

const encoders: Record<Dtype, (data: Float32Array) => ArrayBufferView> = {
  F32: (data) => data,
  F16: (data) => Uint16Array.from(data, toHalf),
  BF16: (data) => Uint16Array.from(new Uint32Array(data.buffer), (bits) => bits >>> 16),
};

/** A safetensors file. */
export function dumpFile(tensors: Record<string, Tensor>, dtype: Dtype | "I8" = "F32"): Buffer {
  const encode = dtype === "I8" ? (data: Float32Array) => Int8Array.from(data) : encoders[dtype];
  const header: Record<string, object> = {};
  const parts: Buffer[] = [];
  let at = 0;
  for (const [tensor, { shape, data }] of Object.entries(tensors)) {
    const { buffer, byteOffset, byteLength } = encode(data);
    parts.push(Buffer.from(buffer as ArrayBuffer, byteOffset, byteLength));
    header[tensor] = { dtype, shape, data_offsets: [at, at + byteLength] };
    at += byteLength;
  }
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, ...parts]);
}

/** Random values that are exact in binary16 and bfloat16, with a channel that stands out, as keys have. */
export function randomTensor(seed: number, ...shape: [number, number, number]): Tensor {
  let state = seed;
  const next = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor(state / 2 ** 26) / 32 - 1;
  };
  const data = Float32Array.from({ length: shape[0] * shape[1] * shape[2] }, (_, i) => {
    return next() * (i % shape[2] === 3 ? 8 : 1);
  });
  return { shape, data };
}
