/** Shows where queries look: exactly, over compressed keys, and the difference. */
import { formatInteger, formatNumber, formatPercent } from "../src/cli/text.js";
import type { AttentionMap } from "./attention-map.js";
import { byId, showFigures } from "./dom.js";
import { Picture } from "./picture.js";

/** Shares of attention below this have the colour of none: weights go over many powers of ten. */
const LEAST_SHARE = 1e-4;

export class AttentionView {
  readonly #exact = new Picture("Exact", "Share of attention, over the keys as they are.");
  readonly #compressed = new Picture("Compressed", "The same queries over what the records hold.");
  readonly #difference = new Picture("Difference", "Compressed minus exact.");

  constructor() {
    const pictures = [this.#exact, this.#compressed, this.#difference];
    byId("attention", HTMLElement).append(...pictures.map(({ element }) => element));
  }

  show(map: AttentionMap): void {
    const { queries, position, tokensPerColumn, moved, encoded } = map;
    showFigures(byId("attention-figures", HTMLElement), [
      ["of attention moves", `${formatPercent(moved.mean)} %`],
      ["in the worst query", `${formatPercent(moved.most)} %`],
    ]);
    const last = position + queries - 1;
    const fromRecords =
      encoded.end > encoded.start
        ? `Keys of tokens ${formatInteger(encoded.start)} to ${formatInteger(encoded.end - 1)} come from records, ` +
          "the first tile and the newest tokens are exact, as in a cache."
        : "No key comes from a record yet: the first tile and the newest tokens stay exact.";
    byId("attention-note", HTMLElement).textContent =
      `Each row is a query, token ${formatInteger(position)} to ${formatInteger(last)} from top to bottom; each column ` +
      `${tokensPerColumn === 1 ? "one token" : `${tokensPerColumn} tokens`}, the first at the left. ${fromRecords}`;
    const logarithmic = (share: number): number => 1 - Math.log(share) / Math.log(LEAST_SHARE);
    const what = `${queries} queries by ${map.columns} columns of tokens`;
    const shares = {
      ...{ rows: queries, columns: map.columns, colors: "sequential" as const, position: logarithmic },
      legend: [`${100 * LEAST_SHARE} %`, "1 %", "100 %"],
    };
    this.#exact.show({ ...shares, values: map.exact, description: `Exact attention: ${what}.` });
    this.#compressed.show({
      ...shares,
      values: map.compressed,
      description: `Attention over compressed keys: ${what}.`,
    });
    const most = map.difference.reduce((a, b) => (Number.isNaN(b) ? a : Math.max(a, Math.abs(b))), 0);
    const points = `${formatNumber(100 * most)} points`;
    this.#difference.show({
      ...{ rows: queries, columns: map.columns, values: map.difference, colors: "diverging" },
      position: (change) => (most > 0 ? 0.5 + change / most / 2 : 0.5),
      description:
        `Difference of attention: ${what}; ${formatPercent(moved.mean)} % of attention moves on average, ` +
        `${formatPercent(moved.most)} % in the worst query; a column changes by at most ${points} of a hundred.`,
      legend: [`−${points}`, "0", `+${points}`],
    });
  }

  /** Says why there is nothing to show. */
  clear(reason: string): void {
    byId("attention-figures", HTMLElement).replaceChildren();
    byId("attention-note", HTMLElement).textContent = reason;
  }
}
