/** What every entry point of the package has beside its `openKvarn`. */
export type { BackendInfo, OpenOptions } from "./dispatch.js";
export type { BackendKind, Normalized, Packed } from "./backend.js";
export { bytesFor, type CacheBytes } from "./bytes.js";
export type { CacheMemory, CommandOptions, KvarnCache, TokenRange } from "./cache/cache.js";
export type { DecodeOptions, EncodeOptions, KeysAndValues, RecordOptions } from "./codec.js";
export type { CacheConfig, Encoder, LayerConfig } from "./config.js";
export { KvarnError, type KvarnErrorCode } from "./errors.js";
export {
  type Bits,
  type Group,
  parsePreset,
  type Preset,
  recordLayout,
  type RecordLayout,
  type RecordPadding,
} from "./format.js";
export type { TileOptions, UnpackOptions } from "./kernels.js";
export type { Kvarn } from "./kvarn.js";
export type { Float16ArrayLike, GpuTensor, Tensor } from "./tensor.js";
export type { WasmSource } from "./wasm/index.js";
export type { AdapterInfo } from "./webgpu/index.js";
