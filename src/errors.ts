/** Stable names of everything that can go wrong; compare `error.code` with these, never the message. */
export type KvarnErrorCode =
  /** An argument has the wrong type or a value outside its range. */
  | "invalid-argument"
  /** An array's length does not fit the shape that the call names or the cache has. */
  | "invalid-shape"
  /** A NaN, an infinity, or a vector too long for binary16. */
  | "non-finite"
  /** A head size that cannot be rotated. */
  | "unsupported-head-dim"
  /** A preset string outside `k{2,3,4,5,6,8}v{2,3,4,5,6,8}_g{64,128}`. */
  | "unsupported-preset"
  /** Records or a saved cache that are damaged, cut short or not ours. */
  | "corrupt-data"
  /** A saved cache of a format version that this release does not read. */
  | "unsupported-version"
  /** A cut (`truncate`) or an import at a length where the cache cannot make it. */
  | "unsupported-length"
  /** Tokens that a sliding window has already let go. */
  | "outside-window"
  /** A cache or an engine was used after `dispose`. */
  | "disposed"
  /** More memory than the engine can address or the machine gives. */
  | "out-of-memory"
  /** A backend or variant that was asked for cannot run here. */
  | "backend-unavailable"
  /** A thread of the engine has ended or failed: its caches can still be saved, and moved to another engine. */
  | "thread-lost"
  /** The GPU device is gone, and with it all that its caches held. */
  | "device-lost"
  /** The GPU device refuses what it was told. */
  | "device-failed";

/** The one error type of this package. `message` names the argument, what it was and what is allowed. */
export class KvarnError extends Error {
  /** What went wrong, for programs. */
  readonly code: KvarnErrorCode;

  constructor(code: KvarnErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "KvarnError";
    this.code = code;
  }
}

/** Describes a value in an error message without printing whole arrays. */
export function describe(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value);
  if (ArrayBuffer.isView(value)) return `${value.constructor.name} of ${value.byteLength} bytes`;
  if (typeof value === "object" && value !== null)
    return `a value of type ${value.constructor?.name ?? "object"}`;
  if (typeof value === "function" || typeof value === "symbol") return `a ${typeof value}`;
  return String(value);
}

/** Checks an integer argument against an inclusive range and returns it. */
export function checkInteger(name: string, value: unknown, least: number, most: number): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < least || value > most) {
    throw new KvarnError(
      "invalid-argument",
      `${name} must be an integer from ${least} to ${Math.floor(most)}, got ${describe(value)}`,
    );
  }
  return value;
}
