/** The example's tokenizer, made of what a GGUF file says. */
import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, it } from "vitest";
import { readGguf } from "../../examples/llama/gguf.js";
import { ModelTokenizer, TextStream } from "../../examples/llama/tokenizer.js";
import { readText } from "../../eval/texts.js";
import { fileOf, readReference, SMOLLM2, TINY } from "../support/llama.js";

const models = [
  ["the tiny model", "tiny", TINY],
  ["SmolLM2-135M-Instruct", "smollm2", SMOLLM2],
] as const;

describe.each(models)("of %s", (_, name, path) => {
  describe.skipIf(path === undefined)("where its file is", () => {
    const reference = readReference(name);
    let tokenizer: ModelTokenizer;
    beforeAll(async () => {
      tokenizer = new ModelTokenizer(await readGguf(fileOf(new Uint8Array(readFileSync(path!)))));
    });

    it("has the tokens of transformers", () => {
      const tokens = tokenizer.encode(readText("austen"));
      expect(tokens.slice(0, reference.text.length)).toEqual([...reference.text]);
    });

    it("cuts numbers into digits, whatever merges of them it has", () => {
      const pieces = tokenizer.encode(" 1817").map((token) => tokenizer.decode([token]));
      expect(pieces).toEqual([" ", "1", "8", "1", "7"]);
    });

    it("puts questions as transformers does", () => {
      expect(tokenizer.chat(reference.question)).toEqual([...reference.prompt]);
      expect(tokenizer.decode([tokenizer.end])).toBe("<|im_end|>");
    });

    it.each([
      "",
      readText("austen"),
      " in 1817,  20 % of\n\n\tété; 漢字 🙂🙃!",
      "<|im_start|>user\nhe's<|im_end|>",
    ])("gives text back", (text) => {
      const tokens = tokenizer.encode(text);
      expect(tokenizer.decode(tokens)).toBe(text);
      const stream = new TextStream(tokenizer);
      const pieces = [...tokens.map((token) => stream.push(token)), stream.end()];
      expect(pieces.join("")).toBe(text);
      expect(pieces.some((piece) => piece.includes("\uFFFD"))).toBe(false);
    });

    it("shows bytes that are no text as what they are, at the latest in the end", () => {
      const tokens = tokenizer.encode("a🙂").slice(0, -1);
      const stream = new TextStream(tokenizer);
      expect(tokens.map((token) => stream.push(token)).join("")).toBe("a");
      expect(stream.end()).toBe("\uFFFD");
      expect(stream.end()).toBe("");
    });
  });
});
