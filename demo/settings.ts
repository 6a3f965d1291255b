/** How tiles are compressed. */
import { type Bits, type Group, parsePreset } from "../src/index.js";
import { DEFAULT_ITERATIONS } from "../src/config.js";
import { BIT_WIDTHS, GROUPS } from "../src/format.js";

export interface Settings {
  readonly keyBits: Bits;
  readonly valueBits: Bits;
  /** Tokens per tile. */
  readonly group: Group;
  /** Steps of the normalization. */
  readonly iterations: number;
}

const { keyBits, valueBits, group } = parsePreset();
export const DEFAULT_SETTINGS: Settings = { keyBits, valueBits, group, iterations: DEFAULT_ITERATIONS };

/** What each slider of the page can be set to: iterations up to twice their default. */
export const CHOICES: { readonly [Name in keyof Settings]: readonly Settings[Name][] } = {
  keyBits: BIT_WIDTHS,
  valueBits: BIT_WIDTHS,
  group: GROUPS,
  iterations: Array.from({ length: 2 * DEFAULT_ITERATIONS + 1 }, (_, i) => i),
};

export function presetName({ keyBits, valueBits, group }: Settings): string {
  return `k${keyBits}v${valueBits}_g${group}`;
}
