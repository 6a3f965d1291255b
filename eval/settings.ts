/** What is evaluated: methods at bit widths, and how much of each task. */
import { createMethod, type Method, METHOD_NAMES, type MethodName } from "../src/methods/index.js";

/** A method at certain bits of K and of V. */
export interface Setting {
  readonly name: MethodName;
  readonly keyBits: number;
  readonly valueBits: number;
}

/** How long the tasks are. */
export interface Effort {
  readonly settings: readonly Setting[];
  /** Names of texts. */
  readonly texts: readonly string[];
  /** Tokens of a text that are read. */
  readonly textTokens: number;
  /** Tokens of a text that are a prompt, and how many are generated then. */
  readonly promptTokens: number;
  readonly generatedTokens: number;
  /** Lines of the retrieval task, and how many of them are asked for. */
  readonly lines: readonly number[];
  readonly questions: number;
}

const at = (bits: string, ...names: MethodName[]): Setting[] =>
  names.map((name) => ({ name, keyBits: Number(bits[0]), valueBits: Number(bits[2]) }));

const F16: Setting = { name: "f16", keyBits: 16, valueBits: 16 };

/** Under two hours on two cores. */
export const FULL: Effort = {
  settings: [
    F16,
    ...at("2/2", "kivi", "quarot", "hadamard+kivi", "kvarn", "ott", "kvarn+ott", "turboquant", "squat"),
    ...at("4/2", "kivi", "kvarn", "kvarn+ott"),
    ...at("3/3", "kivi", "kvarn", "turboquant", "nqkv", "squat"),
    ...at("4/4", "kivi", "quarot", "hadamard+kivi", "kvarn", "turboquant", "nqkv", "squat"),
  ],
  texts: ["austen", "ruth", "jargon"],
  textTokens: 1536,
  promptTokens: 768,
  generatedTokens: 128,
  lines: [60, 20],
  questions: 20,
};

/** Under two minutes: shows that everything runs. */
export const SMOKE: Effort = {
  settings: [F16, ...at("2/2", "kivi", "kvarn")],
  texts: ["austen"],
  textTokens: 448,
  promptTokens: 384,
  generatedTokens: 8,
  lines: [12],
  questions: 2,
};

/** What a setting is called in tables: `kvarn k2v2`. */
export function labelOf(setting: Setting): string {
  return setting.name === "f16" ? setting.name : `${setting.name} ${bitsOf(setting)}`;
}

/** `k2v2` */
export function bitsOf({ keyBits, valueBits }: Setting): string {
  return `k${keyBits}v${valueBits}`;
}

export function methodOf({ name, keyBits, valueBits }: Setting): Method {
  return name === "f16" ? createMethod(name) : createMethod(name, { keyBits, valueBits });
}

/** For tables: by bits, those of K before, then as methods are listed. */
export function compareSettings(a: Setting, b: Setting): number {
  return (
    a.keyBits + a.valueBits - b.keyBits - b.valueBits ||
    a.keyBits - b.keyBits ||
    METHOD_NAMES.indexOf(a.name) - METHOD_NAMES.indexOf(b.name)
  );
}
