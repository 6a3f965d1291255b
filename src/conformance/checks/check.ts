/** What checks have in common. */
import type { ConformanceAdapter } from "../adapter.js";
import type { Subject } from "../report.js";

/** One check of an implementation. */
export interface Check {
  readonly subject: Subject;
  readonly name: string;
  /**
   * Resolves to how well it passed.
   * @throws {NotCovered} where the adapter lacks something; anything else is a failure
   */
  run(adapter: ConformanceAdapter): Promise<string>;
}

/** The adapter lacks functions; the message names them. */
export class NotCovered extends Error {}

/** Makes sure of a function that an adapter or a cache may lack. */
export function expectFunction<T extends object, K extends keyof T & string>(
  owner: T,
  name: K,
): asserts owner is T & Required<Pick<T, K>> {
  if (typeof owner[name] !== "function") throw new NotCovered(`lacking: ${name}`);
}

/** Fails unless the condition holds. */
export function expectThat(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(message);
}

/** Fails unless an array of this kind came back, with as many elements. */
export function expectArray<T extends Float32Array | Uint8Array>(
  name: string,
  value: unknown,
  type: new (length: number) => T,
  length: number,
): T {
  expectThat(value instanceof type, `${name} is no ${type.name}`);
  expectThat(value.length === length, `${name} has ${value.length} elements instead of ${length}`);
  return value;
}

/** Fails unless both hold the same bits. */
export function expectSame<T extends Float32Array | Uint8Array>(what: string, actual: T, expected: T): void {
  expectThat(actual.length === expected.length, `${what}: ${actual.length} elements, not ${expected.length}`);
  const [a, b] = [bytesOf(actual), bytesOf(expected)];
  const at = a.findIndex((byte, i) => byte !== b[i]);
  if (at < 0) return;
  const i = Math.floor(at / actual.BYTES_PER_ELEMENT);
  throw new Error(`${what}: element ${i} is ${actual[i]}, not ${expected[i]}`);
}

/** Fails unless the error of a result is at most as large as allowed; returns it for people to read. */
export function expectWithin(what: string, error: number, allowed: number): string {
  const text = `${what} off by ${error.toExponential(1)}`;
  if (!(error <= allowed)) throw new Error(`${text}, allowed are ${allowed}`);
  return text;
}

/** Fails unless the call does. */
export async function expectRefused(what: string, call: () => unknown): Promise<void> {
  try {
    await call();
  } catch {
    return;
  }
  throw new Error(`${what} was not refused`);
}

/** What was thrown, in words. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function bytesOf(array: ArrayBufferView): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}
