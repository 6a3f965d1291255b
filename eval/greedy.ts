/**
 * A prompt continued greedily without compression, and what each method expects at each of these steps. Up to the first step at
 * which it would have taken another token, that is its own greedy run.
 */
import type { Decoder } from "../examples/llama/decoder.js";
import { F32Attention } from "../examples/llama/f32-attention.js";
import { greedy } from "../examples/llama/sampling.js";
import { MethodAttention } from "./attention.js";
import { compareNext } from "./distributions.js";
import type { GreedyResult } from "./results.js";
import { methodOf, type Setting } from "./settings.js";

/** @returns results in the order of the settings */
export async function runGreedy(
  decoder: Decoder,
  module: WebAssembly.Module,
  prompt: readonly number[],
  steps: number,
  settings: readonly Setting[],
  onStep: () => void,
): Promise<GreedyResult[]> {
  const { config } = decoder;
  const where = [config, module, prompt.length + steps] as const;
  const exact = await F32Attention.open(module, config, prompt.length + steps);
  const caches = await Promise.all(
    settings.map((setting) => MethodAttention.open(methodOf(setting), ...where)),
  );
  const results = settings.map(() => ({ divergence: null as number | null, kl: [] as number[] }));
  let tokens = prompt;
  for (let step = 0; step < steps; step++) {
    const logits = await decoder.forward(tokens, exact, { logits: "last" });
    for (const [i, cache] of caches.entries()) {
      const actual = await decoder.forward(tokens, cache, { logits: "last" });
      const { kl, agrees } = compareNext(logits, actual, undefined);
      results[i].kl.push(kl);
      if (!agrees) results[i].divergence ??= step;
      onStep();
    }
    tokens = [greedy(logits)];
  }
  return results.map((result, i) => ({ ...result, bits: caches[i].cache.bitsPerValue() }));
}
