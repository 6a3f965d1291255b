/**
 * A text, teacher-forced, in blocks ("pseudo-decode", KVarN, arXiv 2606.03458): each block attends to what the method
 * made of the blocks before. The exact run goes beside, and so does a second cache of the method that gets the exact run's
 * keys and values: what differs there is the damage that does not add up.
 */
import type { Config } from "../examples/llama/config.js";
import type { Decoder } from "../examples/llama/decoder.js";
import { F32Attention } from "../examples/llama/f32-attention.js";
import {
  addErrors,
  type Errors,
  meanOfWorst1Percent,
  measureErrors,
  relativeError,
} from "../src/cli/accuracy.js";
import type { DumpLayer } from "../src/cli/dump.js";
import { MethodAttention, type Recorded, Recorder } from "./attention.js";
import { compareBlock } from "./distributions.js";
import type { ForcedResult } from "./results.js";
import { mean, meanDifference } from "./mean.js";
import { methodOf, type Setting } from "./settings.js";

/** Tokens that go through the model together; the decoder takes no more at a time. */
export const BLOCK = 64;
/** Of the text's end, queries whose scores and outputs are compared in f64. */
const COMPARED = 8;

/** One setting's two caches and what was seen of them. */
class Run {
  readonly recorder: Recorder;
  readonly kl: number[] = [];
  readonly nll: number[] = [];
  readonly agreement: number[] = [];
  readonly staticError: number[] = [];
  readonly accumulatedError: number[] = [];
  readonly bits: number[] = [];
  /** Outputs of the second cache for the newest tokens, by layer. */
  readonly outputs: Float32Array[] = [];

  private constructor(
    readonly accumulated: MethodAttention,
    readonly fixed: MethodAttention,
    { layers }: Config,
  ) {
    this.recorder = new Recorder(accumulated, layers);
  }

  static async open(
    setting: Setting,
    ...where: [Config, WebAssembly.Module, capacity: number]
  ): Promise<Run> {
    const open = (): Promise<MethodAttention> => MethodAttention.open(methodOf(setting), ...where);
    return new Run(await open(), await open(), where[0]);
  }
}

/** The exact run's keys and values of one layer, and its newest queries. */
class ExactLayer implements DumpLayer {
  readonly queryTokens = COMPARED;
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly #k: Float32Array;
  readonly #v: Float32Array;
  #q = new Float32Array(0);
  tokens = 0;

  constructor(
    readonly number: number,
    { queryHeads, kvHeads, headDim }: Config,
    capacity: number,
  ) {
    this.queryHeads = queryHeads;
    this.kvHeads = kvHeads;
    this.headDim = headDim;
    this.#k = new Float32Array(capacity * kvHeads * headDim);
    this.#v = new Float32Array(this.#k.length);
  }

  add({ k, v, q }: Recorded): void {
    const width = this.kvHeads * this.headDim;
    this.#k.set(k, this.tokens * width);
    this.#v.set(v, this.tokens * width);
    this.tokens += k.length / width;
    this.#q = q.slice(-COMPARED * this.queryHeads * this.headDim);
  }

  keys(from: number, to: number): Float32Array {
    return this.#part(this.#k, from, to);
  }

  values(from: number, to: number): Float32Array {
    return this.#part(this.#v, from, to);
  }

  queries(from: number, to: number): Float32Array {
    const width = this.queryHeads * this.headDim;
    return this.#q.subarray(from * width, to * width);
  }

  #part(rows: Float32Array, from: number, to: number): Float32Array {
    const width = this.kvHeads * this.headDim;
    return rows.subarray(from * width, to * width);
  }
}

/**
 * @param tokens of a text; what does not fill a block is left out
 * @param module the decoder's kernels
 * @param onBlock called after each block of each setting
 * @returns results in the order of the settings
 */
export async function runForced(
  decoder: Decoder,
  module: WebAssembly.Module,
  tokens: readonly number[],
  settings: readonly Setting[],
  onBlock: () => void,
): Promise<ForcedResult[]> {
  const { config } = decoder;
  const length = tokens.length - (tokens.length % BLOCK);
  const exact = new Recorder(await F32Attention.open(module, config, length), config.layers);
  const layers = Array.from({ length: config.layers }, (_, i) => new ExactLayer(i, config, length));
  const runs = await Promise.all(settings.map((setting) => Run.open(setting, config, module, length)));
  const exactNll: number[] = [];
  const outputSize: number[] = [];
  for (let from = 0; from < length; from += BLOCK) {
    const block = tokens.slice(from, from + BLOCK);
    const came = tokens.slice(from + 1, from + BLOCK + 1);
    const logits = await decoder.forward(block, exact, { logits: "all" });
    exact.layers.forEach((recorded, i) => layers[i].add(recorded));
    exactNll.push(mean(compareBlock(logits, logits, BLOCK, came).map(({ nll }) => nll)));
    outputSize.push(mean(exact.layers.map(({ out }) => meanMagnitude(out))));
    for (const run of runs) {
      const actual = await decoder.forward(block, run.recorder, { logits: "all" });
      const next = compareBlock(logits, actual, BLOCK, came);
      run.kl.push(mean(next.map(({ kl }) => kl)));
      run.nll.push(mean(next.map(({ nll }) => nll)));
      run.agreement.push(mean(next.map(({ agrees }) => Number(agrees))));
      run.staticError.push(attendFixed(run, exact.layers));
      run.accumulatedError.push(
        mean(exact.layers.map(({ out }, i) => meanDifference(run.recorder.layers[i].out, out))),
      );
      run.bits.push(run.accumulated.cache.bitsPerValue());
      onBlock();
    }
  }
  return runs.map((run) => ({
    ...{ blockTokens: BLOCK, kl: run.kl, nll: run.nll, exactNll, agreement: run.agreement, outputSize },
    ...{ staticError: run.staticError, accumulatedError: run.accumulatedError, bits: run.bits },
    ...summarizeTensors(run, layers),
  }));
}

/** Gives the second cache what the exact run had, and returns its mean error. */
function attendFixed(run: Run, exact: readonly Recorded[]): number {
  return mean(
    exact.map(({ k, v, q, out }, layer) => {
      run.fixed.append(layer, k, v);
      const fixed = run.fixed.attend(layer, q);
      run.outputs[layer] = fixed.slice((-fixed.length / BLOCK) * COMPARED);
      return meanDifference(fixed, out);
    }),
  );
}

/** Errors of the second cache's keys and values, and of what the text's last tokens make of them. */
function summarizeTensors(
  { fixed, outputs }: Run,
  layers: readonly ExactLayer[],
): Pick<
  ForcedResult,
  "key" | "value" | "score" | "output" | "worstNorm" | "magnitudeShare" | "compressedBits"
> {
  const { cache } = fixed;
  const errors = addErrors(
    layers.map((layer, i): Errors => {
      const { start, keyEnd, valueEnd } = cache.compressedRange(i);
      const encoded = { start, end: Math.min(keyEnd, valueEnd) };
      const width = layer.kvHeads * layer.headDim;
      const { k, v } = cache.read(i);
      const part = (rows: Float32Array): Float32Array => rows.subarray(start * width, encoded.end * width);
      return measureErrors(layer, { encoded, k: part(k), v: part(v), outputs: outputs[i] }, () => undefined);
    }),
  );
  const { compressedBytes, poolBytes, compressedValues } = cache.memory();
  return {
    key: relativeError(errors.key),
    value: relativeError(errors.value),
    score: relativeError(errors.score),
    output: relativeError(errors.output),
    worstNorm: meanOfWorst1Percent(errors.keyNorms),
    magnitudeShare: errors.key.error > 0 ? errors.keyMagnitude / errors.key.error : null,
    compressedBits: compressedValues > 0 ? (8 * (compressedBytes + poolBytes)) / compressedValues : null,
  };
}

function meanMagnitude(values: Float32Array): number {
  return values.reduce((sum, value) => sum + Math.abs(value), 0) / values.length;
}
