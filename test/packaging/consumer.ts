/**
 * What a user writes, compiled against the packed package under several settings. Lines after `@ts-expect-error` are
 * mistakes that types must find.
 */
import {
  bytesFor,
  type CacheConfig,
  type Kvarn,
  type KvarnCache,
  KvarnError,
  type KvarnErrorCode,
  openKvarn,
  type OpenOptions,
  parsePreset,
  recordLayout,
} from "kvarn";
import { adapterOf, type ConformanceReport, runConformance } from "kvarn/conformance";
import { createMethod, type Method, MethodCache } from "kvarn/methods";
import { encodeRecord, rotate, type TokenRows } from "kvarn/reference";
import { openKvarn as openWasm } from "kvarn/wasm";
import { openKvarn as openWebGpu } from "kvarn/webgpu";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const same = <A, B>(..._: Same<A, B> extends true ? [] : ["the types differ"]): void => undefined;

export const config: CacheConfig = {
  layers: [{ slidingWindow: 512 }, { headDim: 128, sinkLogits: [0, 0, 0, 0] }],
  queryHeads: 4,
  kvHeads: 2,
  headDim: 64,
};

export async function use(options: OpenOptions): Promise<Uint8Array> {
  const kvarn: Kvarn = await openKvarn(options);
  same<typeof openKvarn, typeof openWasm>();
  same<typeof openKvarn, typeof openWebGpu>();
  same<typeof kvarn.backend.kind, "webgpu" | "wasm" | "reference">();
  const cache: KvarnCache = kvarn.createCache(config);
  await cache.append(0, new Float32Array(128), new Uint16Array(128));
  const out = await cache.attend(0, new Float32Array(256));
  same<typeof out, Float32Array>();
  const packed = await kvarn.pack(out, { rows: 16, columns: 16, bits: 4 });
  const raw = await kvarn.unpack(packed, { rows: 16, columns: 16, bits: 4, raw: true });
  const values = await kvarn.unpack(packed, { rows: 16, columns: 16, bits: 4 });
  same<[typeof raw, typeof values], [Uint8Array, Float32Array]>();
  try {
    return await cache.serialize();
  } catch (error) {
    if (!(error instanceof KvarnError)) throw error;
    same<typeof error.code, KvarnErrorCode>();
    throw error;
  } finally {
    await kvarn[Symbol.asyncDispose]();
  }
}

export function sizes(rows: TokenRows): number {
  const layout = recordLayout(parsePreset("k2v2_g64"), 64);
  return (
    encodeRecord(rows, layout, 8).length + rotate(new Float32Array(64), 64)[0] + bytesFor(config, 9).ratio
  );
}

export async function conforms(kvarn: Kvarn): Promise<boolean> {
  const report = await runConformance(adapterOf(kvarn), { subjects: ["encode", "decode"] });
  same<typeof report, ConformanceReport>();
  // @ts-expect-error an adapter decodes, too
  await runConformance({ encode: () => new Uint8Array(0) });
  return report.passed;
}

export function compares(k: Float32Array): number {
  const method: Method = createMethod("kvarn+ott", { keyBits: 2 });
  const cache = new MethodCache(method, { layers: 1, queryHeads: 1, kvHeads: 1, headDim: 64 });
  cache.append(0, k, k, k.length / 64);
  // @ts-expect-error no such method
  createMethod("zip");
  return cache.bitsPerValue();
}

export async function mistakes(kvarn: Kvarn, cache: KvarnCache): Promise<void> {
  // @ts-expect-error no such backend
  await openKvarn({ backend: "cuda" });
  // @ts-expect-error layers are missing
  kvarn.createCache({ queryHeads: 4, kvHeads: 2, headDim: 64 });
  // @ts-expect-error no such option
  kvarn.createCache({ ...config, slidingWindows: 5 });
  // @ts-expect-error the layer is missing
  await cache.append(new Float32Array(128), new Float32Array(128));
  // @ts-expect-error an array of f64
  await cache.attend(0, new Float64Array(256));
  // @ts-expect-error what openKvarn does
  void new Kvarn();
  // @ts-expect-error no code
  void new KvarnError("oops", "");
}
