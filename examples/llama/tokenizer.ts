/** Text to tokens and back, as the model's file says. */
import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";
import type { GgufModel } from "./gguf.js";
import { modelError } from "./model-file.js";

/** GGUF's number for tokens that stand for no text, such as ends of messages. */
const CONTROL = 3;

/**
 * How text is cut up before bytes are merged to tokens, by GGUF's names: `tokenizer.json` as the models' publishers
 * have it.
 */
const PRE_TOKENIZERS: Readonly<Record<string, object>> = {
  smollm: {
    type: "Sequence",
    pretokenizers: [
      { type: "Digits", individual_digits: true },
      { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    ],
  },
};

/** A model's byte-level BPE tokenizer and its chat template. */
export class ModelTokenizer {
  readonly #tokenizer: Tokenizer;
  readonly #template: Template;
  /** The token that ends an answer. */
  readonly end: number;

  /** @throws {Error} where the file has another kind of tokenizer, or a damaged one */
  constructor({ file, metadata }: GgufModel) {
    const field = <T>(name: string, isRight: (value: unknown) => value is T): T => {
      const value = metadata.get(`tokenizer.${name}`);
      if (isRight(value)) return value;
      throw modelError(file.name, `tokenizer.${name} is missing or of another type: the file is damaged`);
    };
    const kind = field("ggml.model", isString);
    const pre = field("ggml.pre", isString);
    if (kind !== "gpt2" || !(pre in PRE_TOKENIZERS)) {
      const known = Object.keys(PRE_TOKENIZERS).join(", ");
      throw modelError(
        file.name,
        `its tokenizer is ${kind} with ${pre}, only gpt2 with ${known} is supported`,
      );
    }
    const tokens = field("ggml.tokens", isListOf(isString));
    const kinds = field("ggml.token_type", isListOf(isNumber));
    const controls = tokens.flatMap((content, id) => (kinds[id] === CONTROL ? [{ id, content }] : []));
    this.#tokenizer = new Tokenizer(
      {
        model: {
          type: "BPE",
          vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
          merges: field("ggml.merges", isListOf(isString)),
        },
        added_tokens: controls.map((token) => ({ ...token, special: true, normalized: false })),
        normalizer: null,
        pre_tokenizer: PRE_TOKENIZERS[pre],
        post_processor: null,
        decoder: { type: "ByteLevel" },
      },
      { clean_up_tokenization_spaces: false },
    );
    this.end = field("ggml.eos_token_id", isNumber);
    this.#template = new Template(field("chat_template", isString));
  }

  /** The tokens of a text; names of control tokens in it are these tokens. */
  encode(text: string): number[] {
    return this.#tokenizer.encode(text).ids;
  }

  decode(tokens: readonly number[]): string {
    return tokens.length === 0 ? "" : this.#tokenizer.decode([...tokens]);
  }

  /** A question to the model, and the beginning of its answer. */
  chat(question: string): number[] {
    const messages = [{ role: "user", content: question }];
    return this.encode(this.#template.render({ messages, add_generation_prompt: true }));
  }
}

/** Text of tokens that come one by one. Bytes that are not a whole character yet wait for the next ones. */
export class TextStream {
  readonly #tokenizer: ModelTokenizer;
  /** Those since text last ended with a whole character. */
  #tokens: number[] = [];
  /** How much of their text has been returned. */
  #length = 0;

  constructor(tokenizer: ModelTokenizer) {
    this.#tokenizer = tokenizer;
  }

  /** Adds a token; returns what text there is more. */
  push(token: number): string {
    this.#tokens.push(token);
    const text = this.#tokenizer.decode(this.#tokens);
    const sure = text.replace(/\uFFFD+$/, "");
    const more = sure.slice(this.#length);
    this.#length = sure.length;
    if (sure === text) this.#clear();
    return more;
  }

  /** The rest, when no more tokens come. */
  end(): string {
    const more = this.#tokenizer.decode(this.#tokens).slice(this.#length);
    this.#clear();
    return more;
  }

  #clear(): void {
    this.#tokens = [];
    this.#length = 0;
  }
}

function isString(value: unknown): value is string {
  return typeof value === "string";
}

function isNumber(value: unknown): value is number {
  return typeof value === "number";
}

function isListOf<T>(isOne: (value: unknown) => value is T): (value: unknown) => value is T[] {
  return (value): value is T[] => Array.isArray(value) && value.every(isOne);
}
