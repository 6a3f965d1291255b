/**
 * Does an implementation of the method compute what it should? Records made by KVarN's vLLM implementation, results of this
 * package's reference backend, and a runner for anything that can encode and decode. The same data for other languages, and
 * what it means: `conformance/` in this package.
 * @module
 */
export type {
  AttendCall,
  Awaitable,
  CacheCall,
  CacheUnderTest,
  ConformanceAdapter,
  RecordShape,
  TokenArrays,
} from "./adapter.js";
export type { LayerConfig } from "../config.js";
export type { Normalized, Packed } from "../backend.js";
export { adapterOf } from "./kvarn.js";
export { type CheckResult, type ConformanceReport, type Subject, SUBJECTS } from "./report.js";
export { type ConformanceOptions, runConformance } from "./run.js";
