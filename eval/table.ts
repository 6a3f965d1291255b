/** The results as Markdown. */
import { mean, type Summary } from "./summary.js";

type Column = readonly [title: string, cell: (summary: Summary) => string];

const TENSORS: readonly Column[] = [
  ["bits", ({ bitsPerValue }) => bitsPerValue.toFixed(2)],
  ["compressed", ({ compressedBitsPerValue }) => compressedBitsPerValue?.toFixed(2) ?? "-"],
  ["K", ({ key }) => percent(key)],
  ["V", ({ value }) => percent(value)],
  ["scores", ({ score }) => percent(score)],
  ["output", ({ output }) => percent(output)],
  ["worst norm", ({ worstNorm }) => percent(worstNorm)],
  ["magnitude", ({ magnitudeShare }) => percent(magnitudeShare)],
];

const MODEL: readonly Column[] = [
  ["bits", ({ bitsPerValue }) => bitsPerValue.toFixed(2)],
  ["KL", ({ kl }) => digits(kl)],
  ["same token", ({ agreement }) => percent(agreement)],
  ["perplexity", ({ perplexity }) => perplexity.toFixed(2)],
  ["static", ({ staticError }) => percent(staticError)],
  ["accumulated", ({ accumulatedError }) => percent(accumulatedError)],
  ["until divergence", ({ divergence, steps }) => divergence.map((step) => step ?? `>${steps}`).join(", ")],
  ["KL of steps", ({ greedyKl }) => digits(greedyKl)],
];

/** Both tables, with how much was done for them. */
export function toMarkdown(summaries: readonly Summary[]): string {
  if (summaries.length === 0) return "No setting has results of every task yet.\n";
  const counts = summaries[0].lines.map(({ lines }) => lines);
  const retrieval = counts.map((count, i): Column => {
    return [`${count} lines`, ({ lines }) => `${percent(lines[i].right)} (${percent(lines[i].digits)})`];
  });
  const exact = mean(summaries.map(({ exactPerplexity }) => exactPerplexity));
  return [
    "Tensors: what compression does to the keys and values of the exact run.",
    table(summaries, TENSORS),
    `The model: without compression its perplexity is ${exact.toFixed(2)}.`,
    table(summaries, [...MODEL, ...retrieval]),
  ].join("\n\n");
}

function table(summaries: readonly Summary[], columns: readonly Column[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
  return [
    line(["method", ...columns.map(([title]) => title)]),
    line(["---", ...columns.map(() => "---:")]),
    ...summaries.map((summary) => line([summary.label, ...columns.map(([, cell]) => cell(summary))])),
    "",
  ].join("\n");
}

function percent(share: number | null): string {
  return share === null ? "-" : `${digits(100 * share)} %`;
}

/** Three digits. */
function digits(value: number): string {
  if (value === 0) return "0";
  return Math.abs(value) >= 100 ? value.toFixed(0) : Number(value.toPrecision(3)).toString();
}
