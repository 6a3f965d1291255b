/** Shows a tile at its four stages, and what its record costs. */
import { formatFactor, formatInteger, formatNumber, formatPercent } from "../src/cli/text.js";
import { byId, showFigures } from "./dom.js";
import { Picture } from "./picture.js";
import type { Stage, Stages } from "./stages.js";

type StageName = "cache" | "rotated" | "normalized" | "quantized";

const PICTURES: Record<StageName, readonly [title: string, explanation: string, unit: string]> = {
  cache: ["1. Cache", "As the model made it. Channels that stand out are what makes keys hard to round.", ""],
  rotated: ["2. Rotated", "A Hadamard transform of each token spreads them over all channels.", ""],
  normalized: [
    "3. Normalized",
    "Channels and tokens divided by their spread, in turn, until both are even.",
    " σ",
  ],
  quantized: [
    "4. Quantized",
    "Rounded to the codes of the record: only these and the scales are kept.",
    " σ",
  ],
};

/** Makes the pictures. */
export class StagesView {
  readonly #pictures = Object.entries(PICTURES).map(([name, [title, explanation, unit]]) => {
    return { name: name as StageName, title, unit, picture: new Picture(title, explanation) };
  });

  constructor() {
    byId("stages", HTMLElement).append(...this.#pictures.map(({ picture }) => picture.element));
  }

  /** @param first whether this is the first tile of its layer */
  show(stages: Stages, first: boolean): void {
    const { part, headDim, tokens, error, recordBytes, backend } = stages;
    const sink = first ? " A cache keeps this tile, its first one, exact: the sink." : "";
    const halfBytes = 2 * 2 * tokens * headDim;
    showFigures(byId("tile-figures", HTMLElement), [
      ["error of keys", `${formatPercent(error.k)} %`],
      ["error of values", `${formatPercent(error.v)} %`],
      ["record", `${formatInteger(recordBytes)} B`],
      ["bits per value", formatNumber((16 * recordBytes) / halfBytes)],
      ["smaller than binary16", formatFactor(halfBytes / recordBytes)],
    ]);
    byId("stages-note", HTMLElement).textContent =
      `${tokens} tokens of ${part === "k" ? "keys" : "values"} from left to right, ${headDim} channels from top to ` +
      `bottom. Bars: the standard deviation of each channel and of each token; the more even they are, the less ` +
      `rounding costs. σ: standard deviations. Computed by ${backend}.${sink}`;
    for (const { name, title, unit, picture } of this.#pictures) {
      const stage = stages[name];
      // What is rounded has the colours of what was there before.
      const most = largest(stages[name === "quantized" ? "normalized" : name].values);
      const notes = [
        `channels: ${describeSpread(stage.channels)}`,
        `tokens: ${describeSpread(stage.tokens)}`,
      ];
      picture.show({
        rows: headDim,
        columns: tokens,
        values: stage.values,
        colors: "diverging",
        position: (value) => (most > 0 ? 0.5 + value / most / 2 : 0.5),
        spread: { rows: stage.channels, columns: stage.tokens },
        description:
          `Heat map ${title}: ${headDim} channels by ${tokens} tokens, ${describeRange(stage)}. ` +
          `Standard deviations of ${notes.join("; of ")}.`,
        legend: [`−${formatNumber(most)}${unit}`, "0", `${formatNumber(most)}${unit}`],
        notes,
      });
    }
  }

  /** Says why there is nothing to show. */
  clear(reason: string): void {
    byId("tile-figures", HTMLElement).replaceChildren();
    byId("stages-note", HTMLElement).textContent = reason;
  }
}

function largest(values: Float32Array): number {
  return values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
}

function describeRange({ values }: Stage): string {
  const least = values.reduce((a, b) => Math.min(a, b), Infinity);
  const most = values.reduce((a, b) => Math.max(a, b), -Infinity);
  return `values from ${formatNumber(least)} to ${formatNumber(most)}`;
}

/** The least and the largest, and how far they are apart. */
function describeSpread(deviations: Float64Array): string {
  const least = Math.min(...deviations);
  const most = Math.max(...deviations);
  const apart = least > 0 ? `, ${formatFactor(most / least)}` : "";
  return `${formatNumber(least)} to ${formatNumber(most)}${apart}`;
}
