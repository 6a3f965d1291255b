/**
 * Encoders of the shipped cache, teacher-forced in blocks as in `forced.ts`: the same presets, strict and refined, on the same
 * tokens.
 */
import { KvarnAttention } from "../examples/llama/attention.js";
import type { Config } from "../examples/llama/config.js";
import type { Decoder } from "../examples/llama/decoder.js";
import { F32Attention } from "../examples/llama/f32-attention.js";
import type { Encoder, Kvarn } from "kvarn";
import { Recorder } from "./attention.js";
import { compareBlock } from "./distributions.js";
import { BLOCK } from "./forced.js";
import { mean, meanDifference } from "./mean.js";

/** Both. */
export const ENCODERS = ["strict", "refined"] as const satisfies readonly Encoder[];

/** What one encoder made of one text at one preset; each by block of {@link BLOCK} tokens. */
export interface EncoderResult {
  readonly preset: string;
  readonly encoder: Encoder;
  /** Mean divergence of the next token's distribution from the exact run's, in nats. */
  readonly kl: readonly number[];
  /** Share of tokens after which both find the same one likeliest. */
  readonly agreement: readonly number[];
  /** `[layers][blocks]`: mean errors of attention outputs where the cache gets the exact run's keys, values and queries. */
  readonly staticError: readonly (readonly number[])[];
  /** The same where they come from the run that reads what the cache made of its own past. */
  readonly accumulatedError: readonly (readonly number[])[];
}

/** One preset and encoder: two caches, and what was seen of them. */
class Run {
  readonly kl: number[] = [];
  readonly agreement: number[] = [];
  readonly staticError: number[][];
  readonly accumulatedError: number[][];
  /** Attends to the cache of the run that reads its own past. */
  readonly recorder: Recorder;
  /** The cache that gets what the exact run had. */
  readonly given: KvarnAttention;
  readonly #own: KvarnAttention;

  constructor(
    kvarn: Kvarn,
    readonly preset: string,
    readonly encoder: Encoder,
    { layers, queryHeads, kvHeads, headDim }: Config,
  ) {
    const open = (): KvarnAttention =>
      new KvarnAttention(kvarn.createCache({ preset, encoder, layers, queryHeads, kvHeads, headDim }));
    this.staticError = Array.from({ length: layers }, () => []);
    this.accumulatedError = Array.from({ length: layers }, () => []);
    this.#own = open();
    this.recorder = new Recorder(this.#own, layers);
    this.given = open();
  }

  finish(): EncoderResult {
    this.#own.cache.dispose();
    this.given.cache.dispose();
    const { preset, encoder, kl, agreement, staticError, accumulatedError } = this;
    return { preset, encoder, kl, agreement, staticError, accumulatedError };
  }
}

/**
 * @param module the decoder's kernels
 * @param onBlock called after each block of each preset and encoder
 */
export async function runEncoders(
  decoder: Decoder,
  module: WebAssembly.Module,
  kvarn: Kvarn,
  tokens: readonly number[],
  presets: readonly string[],
  onBlock: () => void,
): Promise<EncoderResult[]> {
  const { config } = decoder;
  const length = tokens.length - (tokens.length % BLOCK);
  const exact = new Recorder(await F32Attention.open(module, config, length), config.layers);
  const runs = presets.flatMap((preset) =>
    ENCODERS.map((encoder) => new Run(kvarn, preset, encoder, config)),
  );
  for (let from = 0; from < length; from += BLOCK) {
    const block = tokens.slice(from, from + BLOCK);
    const came = tokens.slice(from + 1, from + BLOCK + 1);
    const logits = await decoder.forward(block, exact, { logits: "all" });
    for (const run of runs) {
      const actual = await decoder.forward(block, run.recorder, { logits: "all" });
      const next = compareBlock(logits, actual, BLOCK, came);
      run.kl.push(mean(next.map(({ kl }) => kl)));
      run.agreement.push(mean(next.map(({ agrees }) => Number(agrees))));
      for (const [layer, { k, v, q, out }] of exact.layers.entries()) {
        await run.given.append(layer, k, v);
        run.staticError[layer].push(meanDifference(await run.given.attend(layer, q), out));
        run.accumulatedError[layer].push(meanDifference(run.recorder.layers[layer].out, out));
      }
      onBlock();
    }
  }
  return runs.map((run) => run.finish());
}
