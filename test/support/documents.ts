/** What the documents for users hold: code, commands and what these print. */
import { readdirSync, readFileSync } from "node:fs";

export const documents = [
  "README.md",
  "conformance/README.md",
  "eval/README.md",
  "examples/llama/README.md",
  "tools/README.md",
  ...readdirSync("docs")
    .filter((name) => name.endsWith(".md"))
    .map((name) => `docs/${name}`),
];

/** A fenced block. */
export interface Block {
  readonly language: string;
  readonly text: string;
}

/** The fenced blocks of a document. */
export function blocksOf(document: string): Block[] {
  const blocks = readFileSync(document, "utf8").matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm);
  return [...blocks].map(([, language, text]) => ({ language, text }));
}

/** The commands of a block for a shell: its lines without comments, and what `&&` joins. */
export function commandsIn(block: Block): string[] {
  const lines = block.text.split("\n").map((line) => line.replace(/(^| )#.*/, ""));
  return lines.flatMap((line) => line.split("&&").map((part) => part.trim())).filter((part) => part !== "");
}

/** The commands that a document's sentences name. */
export function namedCommandsOf(document: string): string[] {
  const sentences = readFileSync(document, "utf8").replace(/^```[\s\S]*?^```$/gm, "");
  const code = [...sentences.matchAll(/`([^`]+)`/g)].map(([, text]) => text.replace(/\s+/g, " "));
  return code.filter((text) => /^(npm|npx|node|bash|kvarn|cargo|pip|python|deno|bun|wrangler) /.test(text));
}
