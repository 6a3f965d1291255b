/** What `check.js` returns, and what it has to. */
import { expect } from "vitest";
import type { BackendInfo, KvarnErrorCode } from "../../src/index.js";

/** What one engine did. */
interface EngineReport extends BackendInfo {
  /** Relative difference of attention from the reference backend's. */
  output: number;
  /** The same of a rotation. */
  rotation: number;
  /** Bytes held, and tokens. */
  held: number;
  length: number;
  /** Codes of errors before and after `dispose`. */
  mistakes: string[];
  afterwards: string[];
}

export interface Report {
  runtime: { version: string; float16Array: boolean };
  auto: BackendInfo;
  engines: EngineReport[];
  absent: { backend: string; variant?: string; reason: string }[];
  mistakes: string[];
  /** What `bytesFor` foretells. */
  bytes: number;
}

const OPENING: KvarnErrorCode[] = [
  "invalid-argument",
  "backend-unavailable",
  "invalid-argument",
  "invalid-argument",
];
const USING: KvarnErrorCode[] = [
  "unsupported-head-dim",
  "unsupported-preset",
  "invalid-shape",
  "non-finite",
  "invalid-argument",
  "corrupt-data",
];
const DISPOSED: KvarnErrorCode[] = ["disposed", "disposed"];

/** Names of the engines that ran, such as `wasm strict`. */
export function enginesOf({ engines }: Report): string[] {
  return engines.map(({ kind, variant }) => `${kind} ${variant}`);
}

/** Whatever runs computes the right thing, and errors are the same everywhere. */
export function expectReport(report: Report): void {
  expect(report.mistakes).toEqual(OPENING);
  for (const engine of report.engines) {
    const name = `${engine.kind} ${engine.variant}`;
    // 16-bit integer dots have fewer digits than f32.
    const limit = engine.kind === "wasm" && !engine.variant.endsWith("f32") ? 1e-3 : 1e-5;
    expect(engine.output, name).toBeLessThan(limit);
    expect(engine.rotation, name).toBeLessThan(1e-6);
    expect(engine.held, name).toBe(report.bytes);
    expect(engine.length, name).toBe(150);
    expect(engine.mistakes, name).toEqual(USING);
    expect(engine.afterwards, name).toEqual(DISPOSED);
  }
}
