/**
 * ONNX Runtime in WebAssembly: GroupQueryAttention on one thread, with the cache in f32, or as codes of 8 or 4 bits with a
 * scale for each channel. Past and present are the same memory, as where the operator runs in place: it copies nothing of
 * the cache. Each run writes the newest tokens' K and V again.
 */
import { attentionModel, type CacheFormat, ElementType } from "./model.js";
import { OrtSession, type Value } from "./ort.js";
import { packageName } from "./packages.js";
import { checkResult, type OpenPeer, type Peer, PeerError, type Work } from "./peer.js";

const { f32, i8, u8, i32 } = ElementType;

interface Variant {
  readonly variant: string;
  /** Bits of a code; absent for f32. */
  readonly bits?: 4 | 8;
  /** Relative error of its result that its rounding explains on the benchmarks' data. */
  readonly mostError: number;
}

const VARIANTS: readonly Variant[] = [
  { variant: "wasm f32", mostError: 1e-4 },
  { variant: "wasm 8-bit cache", bits: 8, mostError: 0.05 },
  { variant: "wasm 4-bit cache", bits: 4, mostError: 0.7 },
];

/** Scores of a query head and call: with more of them a call takes a minute. */
const MOST_SCORES = 2 ** 19;

/** Its variants. */
export async function onnxruntimePeers(): Promise<Peer[]> {
  const backend = await packageName("onnxruntime-web");
  return VARIANTS.map((one) => {
    return {
      backend,
      variant: one.variant,
      isBaseline: one.bits === undefined,
      open: (work) => open(one, work),
    };
  });
}

async function open({ bits, mostError }: Variant, work: Work): Promise<OpenPeer> {
  const { queryHeads, kvHeads, headDim, tokens, queries } = work;
  if (queries * tokens > MOST_SCORES) throw new PeerError("a call takes a minute");
  const format: CacheFormat =
    bits === undefined
      ? { type: f32, width: headDim }
      : { type: bits === 8 ? i8 : u8, width: (headDim * bits) / 8, bits };
  const session = await OrtSession.open(await attentionModel(work, format));
  const width = kvHeads * headDim;
  const rowBytes = format.width * (bits === undefined ? 4 : 1);
  const cacheBytes = kvHeads * tokens * rowBytes;
  const value = (type: ElementType, shape: number[], bytes: number): Value & { data: number } => {
    return { type, shape, bytes, data: session.allocate(bytes) };
  };
  const floats = (...shape: number[]) => value(f32, shape, 4 * shape.reduce((a, b) => a * b));
  const integer = (x: number, shape: number[]) => {
    const made = value(i32, shape, 4);
    new DataView(session.bytes(made.data, 4).buffer).setInt32(made.data, x, true);
    return made;
  };
  const query = floats(1, queries, queryHeads * headDim);
  const output = floats(1, queries, queryHeads * headDim);
  const newest = { k: floats(1, queries, width), v: floats(1, queries, width) };
  const cacheShape = [1, kvHeads, tokens, format.width];
  const past = {
    k: value(format.type, cacheShape, cacheBytes),
    v: value(format.type, cacheShape, cacheBytes),
  };
  const scales = bits === undefined ? undefined : scalesOf(work, bits);
  const scaleValues = scales && { k: floats(width), v: floats(width) };
  for (const side of ["k", "v"] as const) {
    if (scaleValues) session.floats(scaleValues[side].data, width).set(scales[side]);
    let token = 0;
    for (const chunk of work.chunks()) {
      for (let at = 0; at < chunk[side].length; at += width, token++) {
        const row = chunk[side].subarray(at, at + width);
        if (token >= tokens - queries) {
          session.floats(newest[side].data + 4 * (token - tokens + queries) * width, width).set(row);
          continue;
        }
        for (let head = 0; head < kvHeads; head++) {
          const target = past[side].data + (head * tokens + token) * rowBytes;
          const part = row.subarray(head * headDim, (head + 1) * headDim);
          if (bits === undefined) session.floats(target, headDim).set(part);
          else {
            const scale = scales![side].subarray(head * headDim, (head + 1) * headDim);
            writeCodes(part, scale, bits, session.bytes(target, rowBytes));
          }
        }
      }
    }
  }
  const run = session.bind(
    {
      query,
      ...{ key: newest.k, value: newest.v, past_key: past.k, past_value: past.v },
      seqlens_k: integer(tokens - 1, [1]),
      total_sequence_length: integer(tokens, []),
      ...(scaleValues && { k_scale: scaleValues.k, v_scale: scaleValues.v }),
    },
    { output, present_key: past.k, present_value: past.v },
  );
  session.floats(query.data, work.q.length).set(work.q);
  await run();
  checkResult(session.floats(output.data, work.q.length), work.expected, mostError);
  return { run };
}

/** The largest code of either sign. */
function mostCode(bits: 4 | 8): number {
  return 2 ** (bits - 1) - 1;
}

/** For each channel of K and V, the least scale that reaches its largest value. */
function scalesOf({ kvHeads, headDim, chunks }: Work, bits: 4 | 8): { k: Float32Array; v: Float32Array } {
  const width = kvHeads * headDim;
  const scales = { k: new Float32Array(width), v: new Float32Array(width) };
  for (const chunk of chunks()) {
    for (const side of ["k", "v"] as const) {
      chunk[side].forEach((x, i) => {
        const scale = Math.abs(x) / mostCode(bits);
        if (scale > scales[side][i % width]) scales[side][i % width] = scale;
      });
    }
  }
  return scales;
}

/** Signed bytes, or two codes a byte, the first in the low half, with 8 added to each. */
function writeCodes(row: Float32Array, scale: Float32Array, bits: 4 | 8, target: Uint8Array): void {
  if (bits === 8) {
    row.forEach((x, i) => (target[i] = Math.round(x / scale[i])));
    return;
  }
  const code = (i: number) => Math.round(row[i] / scale[i]) + 8;
  for (let i = 0; i < target.length; i++) target[i] = code(2 * i) | (code(2 * i + 1) << 4);
}
