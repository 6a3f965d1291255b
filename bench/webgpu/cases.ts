/** What is timed on a GPU. */
import {
  type Encoder,
  type GpuTensor,
  type Kvarn,
  type KvarnCache,
  parsePreset,
  recordLayout,
} from "../../src/index.js";
import { rotationBlock } from "../../src/format.js";
import { floatBits, grid } from "../../src/webgpu/gpu.js";
import { Source } from "../data.js";
import { type GpuPeer, timeGpuPeer } from "../peers/onnxruntime-webgpu.js";
import type { Line, Targets } from "../report.js";
import { makeAttendF16 } from "./attend-f16.js";
import type { GpuTimer } from "./timer.js";

export interface GpuSetting {
  readonly kvarn: Kvarn;
  readonly timer: GpuTimer;
  /** On the device for peers. */
  readonly peerTimer: () => Promise<GpuTimer>;
  readonly peers: readonly GpuPeer[];
  /** To be called with a peer that cannot do this case. */
  readonly refuse: (peer: GpuPeer, error: unknown) => void;
}

export interface GpuCase {
  readonly name: string;
  readonly case: string;
  run(setting: GpuSetting): Promise<Line[]>;
}

const HEADS = { queryHeads: 32, kvHeads: 8, headDim: 128 };
const { queryHeads, kvHeads, headDim } = HEADS;
const WIDTH = kvHeads * headDim;
const CHUNK = 4096;
/** Calls at once of those that take milliseconds. */
const PREFILLS = 10;
/** Exact tokens after the records. */
const TAIL = 100;
const OURS = { backend: "webgpu", variant: "f32" };

function describe(preset: string, tokens: number): string {
  return `${preset} d${headDim} h${queryHeads}/${kvHeads} t${tokens}`;
}

/** One token over `context` and some more: a full sink, and a tail. */
export function attendCase(
  preset: string,
  context: number,
  { ofF16, ofBytes }: { ofF16?: Targets; ofBytes?: Targets } = {},
): GpuCase {
  const name = "attend";
  const of = describe(preset, context + TAIL);
  return {
    name,
    case: of,
    async run(setting) {
      const { timer, peers, peerTimer, refuse } = setting;
      const tokens = Math.min(context, timer.effort.mostTokens) + TAIL;
      const ours = await timeAttend(setting, tokens - TAIL, [preset]);
      const sideBytes = tokens * WIDTH * 2;
      const f16 = await timeF16(timer, tokens, sideBytes);
      const rate = await timer.copyRate();
      const line = (who: { backend: string; variant: string }, value: number, targets?: Targets): Line => {
        return {
          ...{ name, ...who, case: of, value, unit: "us", baseline: f16, ratio: value / f16 },
          ...{ against: "our f16 kernel", ratioUnit: "x time", ...targets },
        };
      };
      const ofCopy = (one: Line, bytes: number, targets?: Targets): Line => {
        const baseline = bytes / rate;
        return {
          ...{ ...one, name: "attend bytes", baseline, ratio: one.value / baseline },
          ...{ against: "its bytes at a copy's rate", gate: undefined, aim: undefined, ...targets },
        };
      };
      const first = line(OURS, ours.time, ofF16);
      const second = line({ backend: "uncompressed", variant: "f16" }, f16);
      const lines = [first, second];
      for (const peer of peers) {
        try {
          lines.push(line(peer, await timeGpuPeer(peer, peerTimer, HEADS, tokens)));
        } catch (error) {
          refuse(peer, error);
        }
      }
      return [...lines, ofCopy(first, ours.recordBytes, ofBytes), ofCopy(second, 2 * sideBytes)];
    },
  };
}

/** The same of another preset, beside that of one. */
export function presetCase(preset: string, other: string, context: number, targets: Targets): GpuCase {
  return besideCase("attend preset", context, [preset], [other], other, targets);
}

/** The same of a cache that takes note of queries beside one that does not. */
export function noteCase(preset: string, context: number): GpuCase {
  return besideCase("attend refined", context, [preset, "refined"], [preset], "itself, strict");
}

type Cached = readonly [preset: string, encoder?: Encoder];

function besideCase(
  name: string,
  context: number,
  cached: Cached,
  other: Cached,
  against: string,
  targets: Targets = {},
): GpuCase {
  const of = describe(cached[0], context + TAIL);
  return {
    name,
    case: of,
    async run(setting) {
      const tokens = Math.min(context, setting.timer.effort.mostTokens);
      const { time: value } = await timeAttend(setting, tokens, cached);
      const { time: baseline } = await timeAttend(setting, tokens, other);
      return [
        {
          ...{ name, ...OURS, case: of, value, unit: "us", baseline, ratio: value / baseline },
          ...{ against, ratioUnit: "x time", ...targets },
        },
      ];
    },
  };
}

/** Many query tokens at once, the newest, as where a prompt comes in chunks. */
export function prefillCase(
  preset: string,
  queries: number,
  context: number,
  targets: Targets = {},
): GpuCase {
  const name = "prefill";
  const of = `${preset} d${headDim} h${queryHeads}/${kvHeads} q${queries} t${context}`;
  return {
    name,
    case: of,
    async run({ kvarn, timer }) {
      const tokens = Math.min(context, timer.effort.mostTokens);
      const news = Math.min(queries, tokens >> 1);
      const q = upload(timer, new Source(6).rows(news * queryHeads, headDim), queryHeads * headDim);
      const out: GpuTensor = { buffer: timer.buffer(q.buffer.size), type: "f32", tokens: news };
      const time = async (cache: KvarnCache) => {
        const call = (_: number, commandEncoder: GPUCommandEncoder) =>
          cache.attend(0, q, { out, commandEncoder });
        const result = await timer.time(call, { calls: Math.min(PREFILLS, timer.effort.calls) });
        cache.dispose();
        return result;
      };
      const value = await time(await fill(kvarn, preset, tokens - news, news));
      // The same products, of tokens that are all exact: none is encoded before the append after theirs.
      const exact = await time(await fill(kvarn, preset, 0, tokens));
      const line = (who: { backend: string; variant: string }, value: number, targets?: Targets): Line => ({
        ...{ name, ...who, case: of, value, unit: "us", baseline: exact, ratio: value / exact },
        ...{ against: "our f16 blocks", ratioUnit: "x time", ...targets },
      });
      return [line(OURS, value, targets), line({ backend: "uncompressed", variant: "f16" }, exact)];
    },
  };
}

/** The tiles of a prompt, encoded by the append that follows it; a K and a V tile are two. */
export function encodeCase(preset: string, targets: Targets): GpuCase {
  const { group } = parsePreset(preset);
  const of = `${preset} d${headDim}, 8 iterations`;
  return {
    name: "encode",
    case: of,
    async run(setting) {
      const { timer } = setting;
      const { time: encode, tiles, tailBytes } = await timeEncoding(setting, preset);
      const { bytes: recordBytes } = recordLayout(parsePreset(preset), headDim);
      const copy = (tailBytes + (tiles / 2) * recordBytes) / (await timer.copyRate());
      const rotate = await timeRotation(timer, tiles * group);
      const line = (name: string, other: number, against: string): Line => {
        const rate = (time: number) => (1e6 * tiles) / time;
        return {
          ...{ name, ...OURS, case: of, value: rate(encode), unit: "tiles/s", baseline: rate(other) },
          ...{ ratio: encode / other, against, ratioUnit: "x time" },
        };
      };
      return [
        { ...line("encode", rotate, "a rotation of its tiles in f32"), ...targets },
        line("encode bytes", copy, "its bytes at a copy's rate"),
      ];
    },
  };
}

/** The same by the refined encoder beside the strict one, for queries seen or for none. */
export function refineCase(preset: string, byQueries: boolean, targets: Targets): GpuCase {
  const name = "refine";
  const of = `${preset} d${headDim}${byQueries ? " by queries" : ""}`;
  return {
    name,
    case: of,
    async run(setting) {
      const refined = await timeEncoding(setting, preset, { encoder: "refined", queries: byQueries ? 1 : 0 });
      const strict = await timeEncoding(setting, preset);
      const rate = ({ time, tiles }: Encoded) => (1e6 * tiles) / time;
      return [
        {
          ...{ name, ...OURS, case: of, value: rate(refined), unit: "tiles/s", baseline: rate(strict) },
          ...{ ratio: refined.time / strict.time, against: "itself, strict", ratioUnit: "x time" },
          ...targets,
        },
      ];
    },
  };
}

interface Encoded {
  /** us */
  readonly time: number;
  /** Of K and of V. */
  readonly tiles: number;
  /** Of the tiles, before. */
  readonly tailBytes: number;
}

/** @param queries tokens that have attended before */
async function timeEncoding(
  { kvarn, timer }: GpuSetting,
  preset: string,
  { encoder = "strict", queries = 0 }: { encoder?: Encoder; queries?: number } = {},
): Promise<Encoded> {
  const { group } = parsePreset(preset);
  const source = new Source(7);
  const context = Math.min(16_384, timer.effort.mostTokens) + group;
  const prompt = kvarn.createCache({ ...HEADS, preset, encoder, layers: 1 });
  const all = source.tokens(context, kvHeads, headDim);
  await prompt.append(0, all.k, all.v);
  if (queries > 0) await prompt.attend(0, new Source(6).rows(queries * queryHeads, headDim));
  const { k, v } = source.tokens(1, kvHeads, headDim);
  const [key, value] = [upload(timer, k, WIDTH), upload(timer, v, WIDTH)];
  const { tailBytes } = prompt.memory();
  const forks: KvarnCache[] = [];
  const time = await timer.time(
    async (_, commandEncoder) => {
      const fork = prompt.fork();
      await fork.append(0, key, value, { commandEncoder });
      forks.push(fork);
    },
    { calls: 1, afterwards: () => forks.pop()!.dispose() },
  );
  prompt.dispose();
  return { time, tiles: 2 * kvHeads * (Math.floor(context / group) - 1), tailBytes };
}

/** The package's rotation of as many rows, in place. */
async function timeRotation(timer: GpuTimer, rows: number): Promise<number> {
  const { gpu } = timer;
  const block = rotationBlock(headDim);
  const kernel = gpu.kernel("rotate", { D: headDim, BLOCK: block });
  const buffer = timer.buffer(rows * headDim * 4);
  const time = await timer.time((_, encoder) => {
    const params = [rows, floatBits(1 / Math.sqrt(block))];
    const work = () => gpu.dispatch({ kernel, params, bindings: [{ buffer }], groups: grid(rows) });
    return gpu.run(work, encoder).settled;
  });
  buffer.destroy();
  return time;
}

async function timeAttend(
  { kvarn, timer }: GpuSetting,
  context: number,
  [preset, encoder]: Cached,
): Promise<{ time: number; recordBytes: number }> {
  const q = upload(timer, new Source(6).rows(queryHeads, headDim), queryHeads * headDim);
  const first = await fill(kvarn, preset, context, TAIL, encoder);
  const { recordBytes } = first.memory();
  const caches = [first];
  while (caches.length < timer.turns(recordBytes)) {
    caches.push(await kvarn.restoreCache(await first.serialize()));
  }
  const out: GpuTensor = { buffer: timer.buffer(queryHeads * headDim * 4), type: "f32", tokens: 1 };
  const time = await timer.time((i, commandEncoder) =>
    caches[i % caches.length].attend(0, q, { out, commandEncoder }),
  );
  for (const cache of caches) cache.dispose();
  return { time, recordBytes };
}

async function timeF16(timer: GpuTimer, tokens: number, sideBytes: number): Promise<number> {
  const { gpu } = timer;
  const copies = timer.turns(2 * sideBytes);
  const exact = Array.from({ length: copies }, () => [timer.buffer(sideBytes), timer.buffer(sideBytes)]);
  const kernel = await makeAttendF16(gpu, kvHeads, headDim);
  const q = { buffer: timer.buffer(queryHeads * headDim * 4) };
  const out = { buffer: timer.buffer(queryHeads * headDim * 4) };
  const time = await timer.time((i, encoder) => {
    const [keys, values] = exact[i % copies].map((buffer) => ({ buffer }));
    return gpu.run(() => kernel.attend(q, keys, values, tokens, out), encoder).settled;
  });
  for (const buffer of exact.flat()) buffer.destroy();
  return time;
}

/** A cache of one layer: `tokens` tokens, encoded as far as possible, and others appended at once, which stay exact. */
async function fill(
  kvarn: Kvarn,
  preset: string,
  tokens: number,
  exact: number,
  encoder: Encoder = "strict",
): Promise<KvarnCache> {
  const cache = kvarn.createCache({ ...HEADS, preset, encoder, layers: 1 });
  const { k, v } = new Source(7).tokens(Math.min(CHUNK, tokens), kvHeads, headDim);
  for (let left = tokens; left > 0; left -= CHUNK) {
    const length = Math.min(CHUNK, left) * WIDTH;
    await cache.append(0, k.subarray(0, length), v.subarray(0, length));
    await cache.flush();
  }
  const newest = new Source(8).tokens(exact, kvHeads, headDim);
  await cache.append(0, newest.k, newest.v);
  return cache;
}

function upload(timer: GpuTimer, data: Float32Array, width: number): GpuTensor {
  const buffer = timer.buffer(data.byteLength);
  timer.gpu.device.queue.writeBuffer(buffer, 0, data as Float32Array<ArrayBuffer>);
  return { buffer, type: "f32", tokens: data.length / width };
}
