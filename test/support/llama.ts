/** The models that `examples/llama` is tested with, and what transformers computes of them. */
import { readFileSync } from "node:fs";
import { readSafetensors } from "../../src/cli/safetensors.js";
import { blobFile, type ModelFile } from "../../examples/llama/model-file.js";

export const TINY = "fixtures/llama/tiny.gguf";

/** Where SmolLM2-135M-Instruct.Q4_1.gguf is, which is not in the repository. */
export const SMOLLM2 = process.env.KVARN_SMOLLM2;

/** What `tools/make_llama_reference.py` has written down; see there. */
export interface Reference {
  readonly text: readonly number[];
  readonly question: string;
  readonly prompt: readonly number[];
  readonly greedy: readonly number[];
  /** After some positions of the text, all logits. */
  readonly logits: ReadonlyMap<number, Float32Array>;
  /** After every position of the text the largest logits, by token. */
  readonly largest: readonly ReadonlyMap<number, number>[];
}

export function readReference(model: "tiny" | "smollm2"): Reference {
  const { metadata, tensors } = readSafetensors(
    readFileSync(`fixtures/llama/${model}.reference.safetensors`),
  );
  const rows = (name: string): Float32Array[] => {
    const tensor = tensors.get(name)!;
    const [count, width = 1] = tensor.shape;
    return Array.from({ length: count }, (_, row) => {
      return Float32Array.from(tensor.read(row * width, (row + 1) * width));
    });
  };
  const integers = (name: string): number[] => rows(name).map(([one]) => one);
  const logits = rows("logits");
  const values = rows("largest.logits");
  const largest = rows("largest.tokens").map((row, i) => {
    return new Map(Array.from(row, (token, j) => [token, values[i][j]] as const));
  });
  return {
    text: integers("text"),
    question: metadata.question,
    prompt: integers("prompt"),
    greedy: integers("greedy"),
    logits: new Map(integers("positions").map((position, i) => [position, logits[i]])),
    largest,
  };
}

/** A file of these bytes. */
export function fileOf(bytes: Uint8Array<ArrayBuffer>, name = "model.gguf"): ModelFile {
  return blobFile(new Blob([bytes]), name);
}
