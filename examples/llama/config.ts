/** The numbers of a Llama model that running it takes. */
import type { GgufModel } from "./gguf.js";
import { modelError } from "./model-file.js";

/** See {@link readConfig}. */
export interface Config {
  readonly layers: number;
  /** Channels of a token between layers. */
  readonly hidden: number;
  readonly feedForward: number;
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly vocabulary: number;
  /** Tokens that the model was made for. */
  readonly context: number;
  readonly normEps: number;
  readonly ropeTheta: number;
}

/**
 * Reads them from a file's metadata.
 * @throws {Error} for other architectures, and where they are missing or do not fit together
 */
export function readConfig({ file, metadata, tensors }: GgufModel): Config {
  const architecture = metadata.get("general.architecture");
  if (architecture !== "llama") {
    throw modelError(
      file.name,
      `its architecture is ${JSON.stringify(architecture)}, only "llama" is supported`,
    );
  }
  const number = (name: string): number => {
    const value = metadata.get(`llama.${name}`);
    if (typeof value === "number" && value > 0) return value;
    throw modelError(file.name, `llama.${name} is missing or no positive number: the file is damaged`);
  };
  const scaling = metadata.get("llama.rope.scaling.type") ?? "none";
  if (scaling !== "none") throw modelError(file.name, "it scales RoPE, which is not supported");

  const [hidden, queryHeads, kvHeads] = [
    number("embedding_length"),
    number("attention.head_count"),
    number("attention.head_count_kv"),
  ];
  const headDim = hidden / queryHeads;
  if (!Number.isInteger(headDim / 2) || !Number.isInteger(queryHeads / kvHeads)) {
    throw modelError(
      file.name,
      `${hidden} channels, ${queryHeads} query and ${kvHeads} KV heads do not fit together: the file is damaged`,
    );
  }
  if (number("rope.dimension_count") !== headDim) {
    throw modelError(file.name, "RoPE does not rotate whole heads, which is not supported");
  }
  return {
    layers: number("block_count"),
    hidden,
    feedForward: number("feed_forward_length"),
    queryHeads,
    kvHeads,
    headDim,
    vocabulary: tensors.get("token_embd.weight")?.rows ?? 0,
    context: number("context_length"),
    normEps: number("attention.layer_norm_rms_epsilon"),
    ropeTheta: number("rope.freq_base"),
  };
}
