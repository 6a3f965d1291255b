/** The suite's view of an engine of this package. */
import type { Kvarn } from "../kvarn.js";
import type { AttendCall, ConformanceAdapter } from "./adapter.js";

/**
 * An adapter for an open engine, which stays the caller's to dispose of.
 * @param kvarn what `openKvarn` returned
 */
export function adapterOf(kvarn: Kvarn): ConformanceAdapter {
  const { kind, variant } = kvarn.backend;
  return {
    f32Attention: kind !== "wasm" || variant.endsWith("-f32"),
    encode: (k, v, options) => kvarn.encode(k, v, options),
    decode: (records, options) => kvarn.decode(records, options),
    rotate: (x, options) => kvarn.rotate(x, options),
    normalize: (tile, options) => kvarn.normalize(tile, options),
    pack: (tile, options) => kvarn.pack(tile, options),
    attend: (call) => attend(kvarn, call),
    createCache: (config) => kvarn.createCache(config),
    restoreCache: (bytes) => kvarn.restoreCache(bytes),
  };
}

/** Attention goes through a cache here, put together of the same parts. */
async function attend(
  kvarn: Kvarn,
  { sink, records, tail, q, ...config }: AttendCall,
): Promise<Float32Array> {
  const cache = kvarn.createCache({ ...config, layers: 1 });
  try {
    if (sink.k.length > 0) await cache.append(0, sink.k, sink.v);
    await cache.importRecords(0, records);
    if (tail.k.length > 0) await cache.append(0, tail.k, tail.v);
    return await cache.attend(0, q);
  } finally {
    cache.dispose();
  }
}
