/** The backends and variants that there are to try. */
import type { BackendKind } from "../backend.js";
import { VARIANTS } from "../wasm/module.js";

/** A backend's variant, by name. */
export interface Candidate {
  readonly kind: BackendKind;
  readonly variant: string;
}

/** The fastest first. */
export const CANDIDATES: readonly Candidate[] = [
  { kind: "webgpu", variant: "f32" },
  ...VARIANTS.map((variant) => ({ kind: "wasm", variant }) as const),
  { kind: "reference", variant: "f64" },
];
