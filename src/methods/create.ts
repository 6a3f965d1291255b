import { describe, KvarnError } from "../errors.js";
import { f16 } from "./f16.js";
import { hadamardKivi, kivi } from "./kivi.js";
import { kvarn, kvarnOtt } from "./kvarn.js";
import type { Method, MethodBits } from "./method.js";
import { nqkv } from "./nqkv.js";
import { ott } from "./ott.js";
import { quarot } from "./quarot.js";
import { squat } from "./squat.js";
import { turboquant } from "./turboquant.js";

/** A method's name. */
export type MethodName =
  | "f16"
  | "kivi"
  | "quarot"
  | "hadamard+kivi"
  | "kvarn"
  | "ott"
  | "kvarn+ott"
  | "turboquant"
  | "nqkv"
  | "squat";

const METHODS: Readonly<Record<MethodName, (bits: MethodBits) => Method>> = {
  f16,
  kivi,
  quarot,
  "hadamard+kivi": hadamardKivi,
  kvarn,
  ott,
  "kvarn+ott": kvarnOtt,
  turboquant,
  nqkv,
  squat,
};

/** The names that {@link createMethod} takes. */
export const METHOD_NAMES = Object.keys(METHODS) as readonly MethodName[];

/**
 * Makes a method by its name, with settings as its source has them.
 * @param bits default: the method's usual ones
 * @throws {KvarnError} `invalid-argument`, `unsupported-preset`
 */
export function createMethod(name: MethodName, bits: MethodBits = {}): Method {
  if (!Object.hasOwn(METHODS, name)) {
    const names = METHOD_NAMES.join(", ");
    throw new KvarnError("invalid-argument", `method must be one of ${names}, got ${describe(name)}`);
  }
  return METHODS[name](bits);
}
