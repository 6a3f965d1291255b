import { halfPrecision } from "./half-precision.js";
import { checkBits, compose, type Method, type MethodBits } from "./method.js";

/** No compression: binary16, against which the others are measured. */
export function f16(options: MethodBits = {}): Method {
  return compose({
    name: "f16",
    source: "IEEE 754 binary16",
    ...checkBits("f16", options, { keyBits: 16, valueBits: 16 }, 16, 16),
    keys: halfPrecision,
    values: halfPrecision,
  });
}
