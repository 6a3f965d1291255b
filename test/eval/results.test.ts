/** What documents say was found is what the runs have left. */
import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import type { Summary } from "../../eval/summary.js";
import { toMarkdown } from "../../eval/table.js";

/** Lines without what a formatter may change. */
function linesOf(markdown: string): string[] {
  return markdown.split("\n").map((line) => line.replace(/[\s]+/g, " ").replace(/-{3,}/g, "---").trim());
}

it("docs/refined.md has the table of npm run eval:encoders", () => {
  const table = linesOf(readFileSync("eval/results/encoders.md", "utf8")).filter((line) =>
    line.startsWith("| k"),
  );
  expect(table).toHaveLength(4);
  const document = new Set(linesOf(readFileSync("docs/refined.md", "utf8")));
  expect(table.filter((line) => !document.has(line))).toEqual([]);
});

it("docs/quality.md has the tables of the full run", () => {
  const summaries = JSON.parse(readFileSync("eval/results/full.json", "utf8")) as Summary[];
  const tables = linesOf(toMarkdown(summaries)).filter(
    (line) => line.startsWith("|") && !line.includes("---"),
  );
  expect(tables).toHaveLength(3 * (summaries.length + 1));
  const document = new Set(linesOf(readFileSync("docs/quality.md", "utf8")));
  expect(tables.filter((line) => !document.has(line))).toEqual([]);
});
