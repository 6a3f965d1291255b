/**
 * ONNX Runtime's WebGPU provider: GroupQueryAttention of one token over a cache in f32, or in its
 * own 8 or 4 bits. Past and present are the same buffers: it copies nothing of the cache.
 */
import { openUncompressed } from "../../src/cli/uncompressed.js";
import { Source } from "../data.js";
import { attentionModel, ElementType } from "./model.js";
import { OrtSession, type Value } from "./ort.js";
import type { GpuTimer } from "../webgpu/timer.js";
import { packageName } from "./packages.js";
import { checkResult } from "./peer.js";

interface Heads {
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** One way to hold its cache. */
export interface GpuPeer {
  readonly backend: string;
  readonly variant: string;
  /** Bits of a value; 0 for f32. */
  readonly bits: 0 | 4 | 8;
  /** Relative error of its result that its rounding explains on the benchmarks' data. */
  readonly mostError: number;
}

/** Tokens over which its result is checked. */
const CHECKED_TOKENS = 300;

export async function onnxruntimeGpuPeers(): Promise<GpuPeer[]> {
  const backend = await packageName("onnxruntime-web");
  return [
    { backend, variant: "webgpu f32", bits: 0, mostError: 1e-4 },
    { backend, variant: "webgpu 8-bit cache", bits: 8, mostError: 0.05 },
    { backend, variant: "webgpu 4-bit cache", bits: 4, mostError: 0.3 },
  ];
}

/**
 * Microseconds that one call takes on the GPU, once it is seen to compute attention. The cache that is timed holds zeros.
 * @param makeTimer on the device to use
 * @throws {PeerError} that says why it cannot
 */
export async function timeGpuPeer(
  { bits, mostError }: GpuPeer,
  makeTimer: () => Promise<GpuTimer>,
  heads: Heads,
  tokens: number,
): Promise<number> {
  const { queryHeads, kvHeads, headDim } = heads;
  // A row of codes comes with one f32 scale.
  const width = bits === 0 ? headDim : 1 + (headDim * bits) / 32;
  const model = await attentionModel(heads, { type: ElementType.f32, width });
  const timer = await makeTimer();
  const { device } = timer.gpu;
  const session = await OrtSession.open(model, { device, options: { kvCacheQuantizationBits: bits } });
  const buffers: GPUBuffer[] = [];
  const floats = (...shape: number[]): Value & { data: GPUBuffer } => {
    const bytes = 4 * shape.reduce((a, b) => a * b);
    const data = timer.buffer(bytes);
    buffers.push(data);
    return { type: ElementType.f32, shape, bytes, data };
  };
  const upload = (data: Float32Array, ...shape: number[]) => {
    const value = floats(...shape);
    device.queue.writeBuffer(value.data, 0, data as Float32Array<ArrayBuffer>);
    return value;
  };
  const integer = (x: number, shape: number[]): Value => {
    const data = session.allocate(4);
    new DataView(session.bytes(data, 4).buffer).setInt32(data, x, true);
    return { type: ElementType.i32, shape, bytes: 4, data };
  };
  const bind = (
    step: { q: Value; k: Value; v: Value },
    past: { k: Value; v: Value },
    length: number,
    output: Value,
  ) =>
    session.bind(
      {
        ...{ query: step.q, key: step.k, value: step.v, past_key: past.k, past_value: past.v },
        seqlens_k: integer(length - 1, [1]),
        total_sequence_length: integer(length, []),
      },
      { output, present_key: past.k, present_value: past.v },
    );
  const cacheOf = (capacity: number) => {
    return { k: floats(1, kvHeads, capacity, width), v: floats(1, kvHeads, capacity, width) };
  };

  const q = new Source(6).rows(queryHeads, headDim);
  const stepOf = (from: number, to: number, k: Float32Array, v: Float32Array) => {
    const rows = (data: Float32Array) =>
      upload(data.slice(from * kvHeads * headDim, to * kvHeads * headDim), 1, to - from, kvHeads * headDim);
    const queries = new Float32Array((to - from) * q.length);
    for (let i = 0; i < queries.length; i += q.length) queries.set(q, i);
    return { q: upload(queries, 1, to - from, q.length), k: rows(k), v: rows(v) };
  };
  const last = CHECKED_TOKENS - 1;
  const { k, v } = new Source(2).tokens(CHECKED_TOKENS, kvHeads, headDim);
  const checked = cacheOf(CHECKED_TOKENS);
  await bind(stepOf(0, last, k, v), checked, last, floats(1, last, q.length))();
  const step = stepOf(last, CHECKED_TOKENS, k, v);
  const output = floats(1, 1, q.length);
  await bind(step, checked, CHECKED_TOKENS, output)();
  const exact = await openUncompressed({ ...heads, capacity: CHECKED_TOKENS });
  exact.append(k, v);
  checkResult(await read(device, output.data), exact.attend(q), mostError);

  const turns = timer.turns(2 * kvHeads * tokens * width * 4);
  const runs = Array.from({ length: turns }, () => bind(step, cacheOf(tokens), tokens, output));
  const time = await timer.timeSubmitting((i) => runs[i % turns]());
  for (const buffer of buffers) buffer.destroy();
  return time;
}

async function read(device: GPUDevice, buffer: GPUBuffer): Promise<Float32Array> {
  const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
  const reader = device.createBuffer({ size: buffer.size, usage });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, reader, 0, buffer.size);
  device.queue.submit([encoder.finish()]);
  await reader.mapAsync(GPUMapMode.READ);
  const data = new Float32Array(reader.getMappedRange()).slice();
  reader.destroy();
  return data;
}
