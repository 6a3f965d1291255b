/** A model's answer to a question, as it comes, with what it takes. */
import type { CacheMemory, Kvarn } from "kvarn";
import { KvarnAttention } from "./attention.js";
import type { Decoder } from "./decoder.js";
import { generate } from "./generate.js";
import { sampler } from "./sampling.js";
import { type ModelTokenizer, TextStream } from "./tokenizer.js";

/** A model, and its tokenizer. */
export interface Llama {
  readonly decoder: Decoder;
  readonly tokenizer: ModelTokenizer;
}

/** What is asked, and how. */
export interface Question {
  readonly prompt: string;
  /** Of the cache. */
  readonly preset: string;
  /** 0 takes the likeliest token always. */
  readonly temperature: number;
  readonly seed: number;
  /** Of the answer, at most. */
  readonly tokens: number;
}

/** Tokens, and how long they took. */
export interface Timed {
  readonly tokens: number;
  readonly seconds: number;
}

/** Where an answer has got to. */
export interface Progress {
  /** Text that has come since the last time. */
  readonly text: string;
  readonly prompt: Timed;
  /** What came after the first token, which is the prompt's. */
  readonly answer: Timed;
  readonly memory: CacheMemory;
}

/** Answers in a cache of its own. Progress comes with every token, and once at the end. */
export async function* answer(
  { decoder, tokenizer }: Llama,
  kvarn: Kvarn,
  question: Question,
): AsyncGenerator<Progress, void> {
  const { layers, queryHeads, kvHeads, headDim } = decoder.config;
  const { preset, temperature, seed, tokens } = question;
  const cache = kvarn.createCache({ preset, layers, queryHeads, kvHeads, headDim });
  const stream = new TextStream(tokenizer);
  const prompt = tokenizer.chat(question.prompt);
  const options = { sampler: sampler(temperature, seed), end: tokenizer.end };
  const start = performance.now();
  let first = start;
  let count = 0;
  const progress = (text: string): Progress => ({
    text,
    prompt: { tokens: prompt.length, seconds: (first - start) / 1000 },
    answer: { tokens: Math.max(0, count - 1), seconds: (performance.now() - first) / 1000 },
    memory: cache.memory(),
  });
  try {
    for await (const token of generate(decoder, new KvarnAttention(cache), prompt, options)) {
      if (count++ === 0) first = performance.now();
      yield progress(stream.push(token));
      if (count === tokens) break;
    }
    if (count === 0) first = performance.now();
    yield progress(stream.end());
  } finally {
    cache.dispose();
  }
}

/** Speed and size in words. */
export function describeProgress({ prompt, answer, memory }: Progress): string {
  const rate = ({ tokens, seconds }: Timed): string => (tokens / Math.max(seconds, 1e-3)).toFixed(1);
  const kib = (bytes: number): string => `${Math.ceil(bytes / 1024).toLocaleString("en-US")} KiB`;
  return (
    `${prompt.tokens} tokens of prompt at ${rate(prompt)} a second, then ${rate(answer)} a second\n` +
    `cache ${kib(memory.totalBytes)}, in binary16 ${kib(memory.f16Bytes)}: ${memory.ratio.toFixed(2)}x smaller`
  );
}
