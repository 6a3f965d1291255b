/** What `check.js` returns, and what it has to. */
import { expect } from "vitest";
import {
  type CheckResult,
  type ConformanceAdapter,
  runConformance,
  type Subject,
} from "../../src/conformance/index.js";
import type { BackendInfo, BackendKind, KvarnErrorCode } from "../../src/index.js";

/** What one engine did. */
interface EngineReport extends BackendInfo {
  /** How many checks of the suite passed, and the others. */
  conformance: { passed: number; others: CheckResult[] };
  /** Relative difference of a rotation from the reference backend's. */
  rotation: number;
  /** Bytes held, and tokens. */
  held: number;
  length: number;
  /** Codes of errors before and after `dispose`. */
  mistakes: string[];
  afterwards: string[];
}

/** What `check.js` takes, as far as it is JSON. */
export interface CheckOptions {
  gpu?: boolean;
  threads?: boolean;
  subjects?: Partial<Record<BackendKind, readonly Subject[]>>;
}

export interface Report {
  runtime: { version: string; float16Array: boolean };
  auto: BackendInfo;
  engines: EngineReport[];
  absent: { backend: string; variant?: string; reason: string }[];
  mistakes: string[];
  threads: { absent: string } | { reason: string; sameBytes: boolean; difference: number };
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

/** Every check that the suite has: an implementation without functions passes none of them. */
const { checks } = await runConformance({} as ConformanceAdapter);

/** How many checks the suite has, of some subjects. */
export function countChecks(subjects: readonly Subject[] = checks.map(({ subject }) => subject)): number {
  return checks.filter(({ subject }) => subjects.includes(subject)).length;
}

/** An engine's name, such as `wasm strict`. */
export function nameOf({ kind, variant }: { kind: string; variant: string }): string {
  return `${kind} ${variant}`;
}

/** Names of the engines that ran. */
export function enginesOf({ engines }: Report): string[] {
  return engines.map((engine) => nameOf(engine));
}

/** Two threads run, and make what one makes. */
export function expectThreads({ threads }: Report): void {
  expect(threads).toEqual({
    reason: expect.stringMatching(/; 2 threads$/) as string,
    sameBytes: true,
    difference: expect.closeTo(0, 5) as number,
  });
}

/** Whatever runs conforms, and errors are the same everywhere. */
export function expectReport(report: Report, { subjects = {} }: CheckOptions): void {
  expect(report.mistakes).toEqual(OPENING);
  for (const engine of report.engines) {
    const name = nameOf(engine);
    expect(engine.conformance.others, name).toEqual([]);
    expect(engine.conformance.passed, name).toBe(countChecks(subjects[engine.kind]));
    expect(engine.rotation, name).toBeLessThan(1e-6);
    expect(engine.held, name).toBe(report.bytes);
    expect(engine.length, name).toBe(150);
    expect(engine.mistakes, name).toEqual(USING);
    expect(engine.afterwards, name).toEqual(DISPOSED);
  }
}
