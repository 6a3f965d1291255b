/** What the model reads. */
import { readFileSync } from "node:fs";

/** Texts in the public domain; each says where it is from. */
export const TEXTS: Readonly<Record<string, string>> = {
  austen: "tools/fixture-text.txt",
  ruth: "eval/texts/ruth.txt",
  jargon: "eval/texts/jargon.txt",
};

/** A text without the lines that say where it is from. */
export function readText(name: string): string {
  const lines = readFileSync(TEXTS[name], "utf8").split("\n");
  return lines
    .filter((line) => !line.startsWith("#"))
    .join("\n")
    .trim();
}
