/** The results as Markdown. */
import { mean } from "./mean.js";
import type { Summary } from "./summary.js";

type Column = readonly [title: string, cell: (summary: Summary) => string];

const TENSORS: readonly Column[] = [
  ["bits", ({ compressedBits }) => compressedBits?.toFixed(2) ?? "-"],
  ["K", ({ key }) => percent(key)],
  ["V", ({ value }) => percent(value)],
  ["scores", ({ score }) => percent(score)],
  ["output", ({ output }) => percent(output)],
  ["worst norm", ({ worstNorm }) => percent(worstNorm)],
  ["magnitude", ({ magnitudeShare }) => percent(magnitudeShare)],
];

const MODEL: readonly Column[] = [
  ["bits", ({ bits }) => bits.toFixed(2)],
  ["KL", ({ kl }) => digits(kl)],
  ["same token", ({ agreement }) => percent(agreement)],
  ["perplexity", ({ perplexity }) => perplexity.toFixed(2)],
  ["static", ({ staticError }) => percent(staticError)],
  ["accumulated", ({ accumulatedError }) => percent(accumulatedError)],
];

/** Greedy decoding. */
const GREEDY: readonly Column[] = [
  ["bits", ({ greedyBits }) => greedyBits.toFixed(2)],
  ["until divergence", ({ divergence, steps }) => divergence.map((step) => step ?? `>${steps}`).join(", ")],
  ["KL of steps", ({ greedyKl }) => digits(greedyKl)],
];

/** All tables. */
export function toMarkdown(summaries: readonly Summary[]): string {
  if (summaries.length === 0) return "No setting has results of every task yet.\n";
  const counts = summaries[0].lines.map(({ lines }) => lines);
  const retrieval = counts.flatMap((count, i): Column[] => {
    return [
      [`bits, ${count} lines`, ({ lines }) => lines[i].bits.toFixed(2)],
      ["lines", ({ lines }) => percent(lines[i].right)],
      ["digits", ({ lines }) => percent(lines[i].digits)],
    ];
  });
  const exact = mean(summaries.map(({ exactPerplexity }) => exactPerplexity));
  return [
    "Keys and values of the exact run. Bits: of compressed elements.",
    table(summaries, TENSORS),
    `The model, teacher-forced; without compression its perplexity is ${exact.toFixed(2)}. Bits: the window included.`,
    table(summaries, MODEL),
    "Greedy decoding and line retrieval. Bits: the window included, at the end.",
    table(summaries, [...GREEDY, ...retrieval]),
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
