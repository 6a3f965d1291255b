/** A Llama decoder: tokens in, logits out, with its attention in a cache that the caller brings. */
import type { Attention } from "./attention.js";
import { type Config, readConfig } from "./config.js";
import type { GgufModel } from "./gguf.js";
import { Kernels, type Matrix, wholeFours } from "./kernels.js";
import { add, rmsNorm, rope, ropeRotation, swiGlu } from "./layers.js";
import { type LayerWeights, loadWeights, type Weights } from "./weights.js";

/** Tokens that go through the layers together: each weight is dequantized once for all of them. */
const CHUNK = 64;

/** A tensor of up to {@link CHUNK} tokens in the kernels' memory. */
interface Buffer {
  readonly address: number;
  readonly width: number;
}

/** A model, ready to run. */
export class Decoder {
  readonly config: Config;
  readonly #kernels: Kernels;
  readonly #weights: Weights;
  readonly #scratch: number;
  readonly #buffers: Readonly<Record<"x" | "normed" | "q" | "k" | "v" | "gate" | "up" | "logits", Buffer>>;

  private constructor(config: Config, kernels: Kernels, weights: Weights) {
    const { hidden, feedForward, headDim, queryHeads, kvHeads, vocabulary } = config;
    const buffer = (width: number): Buffer => ({
      address: kernels.reserve(wholeFours(CHUNK) * width * 4),
      width,
    });
    this.config = config;
    this.#kernels = kernels;
    this.#weights = weights;
    this.#buffers = {
      x: buffer(hidden),
      normed: buffer(hidden),
      q: buffer(queryHeads * headDim),
      k: buffer(kvHeads * headDim),
      v: buffer(kvHeads * headDim),
      gate: buffer(feedForward),
      up: buffer(feedForward),
      logits: buffer(vocabulary),
    };
    this.#scratch = kernels.reserveScratch(Math.max(hidden, feedForward), CHUNK);
    kernels.grow();
  }

  /**
   * Loads a model's weights.
   * @param module `build/llama.wasm`, compiled
   * @throws {Error} where the model is no plain Llama, or its file is damaged
   */
  static async load(model: GgufModel, module: WebAssembly.Module): Promise<Decoder> {
    const config = readConfig(model);
    const kernels = await Kernels.open(module);
    return new Decoder(config, kernels, await loadWeights(model, config, kernels));
  }

  /**
   * Runs the model over the next tokens of a sequence, one call at a time.
   * @param cache of the tokens before; these are added to it
   * @param options `logits`: after the last token only, or after all of them, which takes 4 bytes for each token and
   * each of the vocabulary: long texts go in several calls
   * @returns `[vocabulary]` or `[tokens, vocabulary]`: what the next token may be
   */
  async forward(
    tokens: readonly number[],
    cache: Attention,
    options: { logits: "last" | "all" },
  ): Promise<Float32Array> {
    const { vocabulary, context } = this.config;
    const wrong = tokens.find((token) => !(Number.isInteger(token) && token >= 0 && token < vocabulary));
    if (wrong !== undefined) throw new RangeError(`the model has no token ${wrong}, only ${vocabulary}`);
    if (tokens.length === 0) throw new RangeError("there are no tokens to run");
    if (cache.length + tokens.length > context) {
      throw new RangeError(`the model is made for ${context} tokens, not ${cache.length + tokens.length}`);
    }
    const all = options.logits === "all";
    const logits = new Float32Array((all ? tokens.length : 1) * vocabulary);
    for (let from = 0; from < tokens.length; from += CHUNK) {
      const chunk = tokens.slice(from, from + CHUNK);
      await this.#runLayers(chunk, cache);
      if (all) logits.set(this.#logits(0, chunk.length), from * vocabulary);
      else if (from + CHUNK >= tokens.length) logits.set(this.#logits(chunk.length - 1, 1));
    }
    return logits;
  }

  /** Leaves what the layers make of the tokens in the buffer `x`. */
  async #runLayers(tokens: readonly number[], cache: Attention): Promise<void> {
    const { hidden, headDim, queryHeads, kvHeads, ropeTheta, normEps } = this.config;
    const { x, normed, q, k, v } = this.#buffers;
    const count = tokens.length;
    const rotation = ropeRotation(cache.length, count, headDim, ropeTheta);
    tokens.forEach((token, i) => {
      this.#kernels.dequantizeRow(this.#weights.embedding, token, x.address + i * hidden * 4);
    });
    for (const [index, layer] of this.#weights.layers.entries()) {
      rmsNorm(this.#view(x, count), layer.attentionNorm, normEps, this.#view(normed, count));
      this.#multiply(layer.q, normed, count, q);
      this.#multiply(layer.k, normed, count, k);
      this.#multiply(layer.v, normed, count, v);
      rope(this.#view(q, count), queryHeads, rotation);
      rope(this.#view(k, count), kvHeads, rotation);
      await cache.append(index, this.#view(k, count), this.#view(v, count));
      this.#view(q, count).set(await cache.attend(index, this.#view(q, count)));
      this.#multiply(layer.output, q, count, normed);
      add(this.#view(x, count), this.#view(normed, count));
      this.#feedForward(layer, count);
    }
  }

  #feedForward(layer: LayerWeights, count: number): void {
    const { x, normed, gate, up } = this.#buffers;
    rmsNorm(this.#view(x, count), layer.feedForwardNorm, this.config.normEps, this.#view(normed, count));
    this.#multiply(layer.gate, normed, count, gate);
    this.#multiply(layer.up, normed, count, up);
    swiGlu(this.#view(gate, count), this.#view(up, count));
    this.#multiply(layer.down, gate, count, normed);
    add(this.#view(x, count), this.#view(normed, count));
  }

  /** Logits after `count` tokens of the chunk, from the `first` on. */
  #logits(first: number, count: number): Float32Array {
    const { x, normed, logits } = this.#buffers;
    const { embedding, outputNorm } = this.#weights;
    const states = this.#view(x, first + count).subarray(first * x.width);
    rmsNorm(states, outputNorm, this.config.normEps, this.#view(normed, count));
    this.#multiply(embedding, normed, count, logits);
    return this.#view(logits, count);
  }

  #multiply(matrix: Matrix, x: Buffer, count: number, y: Buffer): void {
    this.#kernels.multiply(matrix, x.address, count, y.address, this.#scratch);
  }

  #view({ address, width }: Buffer, count: number): Float32Array {
    return this.#kernels.floats(address, count * width);
  }
}
