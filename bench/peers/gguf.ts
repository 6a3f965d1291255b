/** A model for llama.cpp that does little but attend: one layer with random weights, 32 channels wide. */
import { xorshift32 } from "../data.js";

type MetadataValue =
  | { readonly type: "u32" | "f32"; readonly value: number }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "list"; readonly of: "i32" | "f32"; readonly values: readonly number[] }
  | { readonly type: "list"; readonly of: "string"; readonly values: readonly string[] };

/** GGUF's numbers of types. */
const TYPES = { u32: 4, i32: 5, f32: 6, string: 8, list: 9 } as const;
const ALIGNMENT = 32;
/** Channels between layers: the least that a block of codes takes. */
const WIDTH = 32;

class Writer {
  readonly #parts: Uint8Array<ArrayBuffer>[] = [];
  #length = 0;

  bytes(bytes: Uint8Array<ArrayBuffer>): void {
    this.#parts.push(bytes);
    this.#length += bytes.length;
  }

  number(type: "u32" | "i32" | "f32" | "u64", value: number): void {
    const view = new DataView(new ArrayBuffer(type === "u64" ? 8 : 4));
    if (type === "u64") view.setBigUint64(0, BigInt(value), true);
    else if (type === "f32") view.setFloat32(0, value, true);
    else view.setUint32(0, value, true);
    this.bytes(new Uint8Array(view.buffer));
  }

  string(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.number("u64", bytes.length);
    this.bytes(bytes);
  }

  align(): void {
    this.bytes(new Uint8Array(-this.#length & (ALIGNMENT - 1)));
  }

  async finish(): Promise<Uint8Array> {
    return new Uint8Array(await new Blob(this.#parts).arrayBuffer());
  }
}

/** The file's bytes. Its vocabulary is that of bytes. */
export async function attentionGguf(
  { queryHeads, kvHeads, headDim }: { queryHeads: number; kvHeads: number; headDim: number },
  context: number,
): Promise<Uint8Array> {
  const byteTokens = Array.from(
    { length: 256 },
    (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, "0")}>`,
  );
  const tokens = ["<unk>", "<s>", "</s>", ...byteTokens];
  const u32 = (value: number): MetadataValue => ({ type: "u32", value });
  const string = (value: string): MetadataValue => ({ type: "string", value });
  const metadata: Record<string, MetadataValue> = {
    "general.architecture": string("llama"),
    "llama.block_count": u32(1),
    "llama.context_length": u32(context),
    "llama.embedding_length": u32(WIDTH),
    "llama.feed_forward_length": u32(WIDTH),
    "llama.attention.head_count": u32(queryHeads),
    "llama.attention.head_count_kv": u32(kvHeads),
    "llama.attention.key_length": u32(headDim),
    "llama.attention.value_length": u32(headDim),
    "llama.attention.layer_norm_rms_epsilon": { type: "f32", value: 1e-5 },
    "llama.rope.dimension_count": u32(headDim),
    "llama.vocab_size": u32(tokens.length),
    "tokenizer.ggml.model": string("llama"),
    "tokenizer.ggml.tokens": { type: "list", of: "string", values: tokens },
    "tokenizer.ggml.scores": { type: "list", of: "f32", values: tokens.map(() => 0) },
    // 2: unknown, 3: control, 6: a byte.
    "tokenizer.ggml.token_type": {
      ...{ type: "list", of: "i32" },
      values: tokens.map((_, i) => (i === 0 ? 2 : i < 3 ? 3 : 6)),
    },
    "tokenizer.ggml.bos_token_id": u32(1),
    "tokenizer.ggml.eos_token_id": u32(2),
  };
  const tensors: Record<string, readonly number[]> = {
    "token_embd.weight": [WIDTH, tokens.length],
    "output_norm.weight": [WIDTH],
    "output.weight": [WIDTH, tokens.length],
    "blk.0.attn_norm.weight": [WIDTH],
    "blk.0.attn_q.weight": [WIDTH, queryHeads * headDim],
    "blk.0.attn_k.weight": [WIDTH, kvHeads * headDim],
    "blk.0.attn_v.weight": [WIDTH, kvHeads * headDim],
    "blk.0.attn_output.weight": [queryHeads * headDim, WIDTH],
    "blk.0.ffn_norm.weight": [WIDTH],
    "blk.0.ffn_gate.weight": [WIDTH, WIDTH],
    "blk.0.ffn_up.weight": [WIDTH, WIDTH],
    "blk.0.ffn_down.weight": [WIDTH, WIDTH],
  };
  const writer = new Writer();
  writer.bytes(new TextEncoder().encode("GGUF"));
  writer.number("u32", 3);
  writer.number("u64", Object.keys(tensors).length);
  writer.number("u64", Object.keys(metadata).length);
  for (const [key, value] of Object.entries(metadata)) {
    writer.string(key);
    writeValue(writer, value);
  }
  let offset = 0;
  for (const [name, shape] of Object.entries(tensors)) {
    writer.string(name);
    writer.number("u32", shape.length);
    for (const size of shape) writer.number("u64", size);
    writer.number("u32", 0); // f32
    writer.number("u64", offset);
    offset += Math.ceil((4 * sizeOf(shape)) / ALIGNMENT) * ALIGNMENT;
  }
  writer.align();
  const next = xorshift32(11);
  for (const [name, shape] of Object.entries(tensors)) {
    const isNorm = name.endsWith("norm.weight");
    // So that what is about 1 before a product is about 1 after it.
    const scale = Math.sqrt(3 / shape[0]);
    const draw = () => scale * (next() / 2 ** 31 - 1);
    writer.bytes(
      new Uint8Array(Float32Array.from({ length: sizeOf(shape) }, () => (isNorm ? 1 : draw())).buffer),
    );
    writer.align();
  }
  return writer.finish();
}

function sizeOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b);
}

function writeValue(writer: Writer, value: MetadataValue): void {
  writer.number("u32", TYPES[value.type]);
  if (value.type === "string") writer.string(value.value);
  else if (value.type !== "list") writer.number(value.type, value.value);
  else {
    writer.number("u32", TYPES[value.of]);
    writer.number("u64", value.values.length);
    if (value.of === "string") for (const text of value.values) writer.string(text);
    else for (const x of value.values) writer.number(value.of, x);
  }
}
