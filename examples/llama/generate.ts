/** Lets a model answer. */
import type { Attention } from "./attention.js";
import type { Decoder } from "./decoder.js";
import type { Sampler } from "./sampling.js";

/**
 * The tokens that follow a prompt, one by one, until `end` (which is not among them), or as many as the model's context
 * has room for.
 * @param cache of what was before the prompt; whoever stops earlier finds all but the last token in it
 */
export async function* generate(
  decoder: Decoder,
  cache: Attention,
  prompt: readonly number[],
  options: { sampler: Sampler; end: number },
): AsyncGenerator<number, void> {
  let logits = await decoder.forward(prompt, cache, { logits: "last" });
  for (;;) {
    const token = options.sampler(logits);
    if (token === options.end) return;
    yield token;
    if (cache.length >= decoder.config.context) return;
    logits = await decoder.forward([token], cache, { logits: "last" });
  }
}
