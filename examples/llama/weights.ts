/** Loads a model's weights into the kernels' memory, quantized as they are. */
import type { Config } from "./config.js";
import type { GgufModel, TensorPlace } from "./gguf.js";
import type { Kernels, Matrix } from "./kernels.js";
import { modelError } from "./model-file.js";

/** One layer's weights. */
export interface LayerWeights {
  readonly attentionNorm: Float32Array;
  readonly q: Matrix;
  readonly k: Matrix;
  readonly v: Matrix;
  readonly output: Matrix;
  readonly feedForwardNorm: Float32Array;
  readonly gate: Matrix;
  readonly up: Matrix;
  readonly down: Matrix;
}

/** All of a model's weights. */
export interface Weights {
  /** Embeds tokens, and makes logits at the end. */
  readonly embedding: Matrix;
  readonly layers: readonly LayerWeights[];
  readonly outputNorm: Float32Array;
}

/** Rows that are read at a time; of a matrix of SmolLM2's a MB or less. */
const ROWS = 1024;

/**
 * Reads all tensors.
 * @throws {Error} where one is missing, is of another shape than the model's numbers say, or is one that a plain Llama
 * with tied embeddings does not have
 */
export async function loadWeights(model: GgufModel, config: Config, kernels: Kernels): Promise<Weights> {
  const { file } = model;
  const { hidden, feedForward, headDim, vocabulary } = config;
  const [queryRows, kvRows] = [config.queryHeads * headDim, config.kvHeads * headDim];
  const unused = new Map(model.tensors);
  const loads: (() => Promise<void>)[] = [];

  const place = (name: string, rows: number, columns: number): TensorPlace => {
    const found = unused.get(`${name}.weight`);
    if (!found) throw modelError(file.name, `the tensor ${name}.weight is missing: the file is damaged`);
    if (found.rows !== rows || found.columns !== columns) {
      throw modelError(
        file.name,
        `${found.name} is ${found.rows}x${found.columns}, not ${rows}x${columns}: the file is damaged`,
      );
    }
    unused.delete(found.name);
    return found;
  };
  const matrix = (name: string, rows: number, columns: number, heads = 0): Matrix => {
    const tensor = place(name, rows, columns);
    const address = kernels.reserve(rows * tensor.rowBytes);
    loads.push(() => load(model, tensor, kernels, address, heads));
    return { ...tensor, address };
  };
  const norm = (name: string): Float32Array => {
    const tensor = place(name, 1, hidden);
    if (tensor.type !== 0) throw modelError(file.name, `${tensor.name} is not in f32: the file is damaged`);
    const values = new Float32Array(hidden);
    const bytes = new Uint8Array(values.buffer);
    loads.push(async () => bytes.set(await file.read(tensor.offset, tensor.offset + bytes.length)));
    return values;
  };
  const layer = (index: number): LayerWeights => {
    const block = `blk.${index}`;
    return {
      attentionNorm: norm(`${block}.attn_norm`),
      q: matrix(`${block}.attn_q`, queryRows, hidden, config.queryHeads),
      k: matrix(`${block}.attn_k`, kvRows, hidden, config.kvHeads),
      v: matrix(`${block}.attn_v`, kvRows, hidden),
      output: matrix(`${block}.attn_output`, hidden, queryRows),
      feedForwardNorm: norm(`${block}.ffn_norm`),
      gate: matrix(`${block}.ffn_gate`, feedForward, hidden),
      up: matrix(`${block}.ffn_up`, feedForward, hidden),
      down: matrix(`${block}.ffn_down`, hidden, feedForward),
    };
  };

  const weights = {
    embedding: matrix("token_embd", vocabulary, hidden),
    layers: Array.from({ length: config.layers }, (_, index) => layer(index)),
    outputNorm: norm("output_norm"),
  };
  if (unused.size > 0) {
    const names = [...unused.keys()].slice(0, 3).join(", ");
    throw modelError(file.name, `it has tensors that this decoder does not know: ${names}`);
  }
  kernels.grow();
  for (const one of loads) await one();
  return weights;
}

/**
 * Copies a matrix to the kernels' memory. Those of queries and keys (`heads` > 0) have each head's rows in the order that
 * lets RoPE turn neighbours; here they come in that of the published model, which turns channel c with c + headDim / 2, so
 * that the cache holds the same keys as other engines' caches.
 */
async function load(
  { file }: GgufModel,
  { rows, rowBytes, offset }: TensorPlace,
  kernels: Kernels,
  address: number,
  heads: number,
): Promise<void> {
  const step = heads > 0 ? rows / heads : ROWS;
  for (let from = 0; from < rows; from += step) {
    const count = Math.min(step, rows - from);
    const start = offset + from * rowBytes;
    const source = await file.read(start, start + count * rowBytes);
    const target = kernels.bytes(address + from * rowBytes, source.length);
    if (heads === 0) {
      target.set(source);
      continue;
    }
    for (let row = 0; row < count; row++) {
      const from = row < count / 2 ? 2 * row : 2 * row - count + 1;
      target.set(source.subarray(from * rowBytes, (from + 1) * rowBytes), row * rowBytes);
    }
  }
}
