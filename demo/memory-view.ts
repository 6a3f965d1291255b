/** The memory calculator: what a model's cache takes, by preset. */
import {
  formatMebibytes,
  SIZE_TITLES,
  sizeCells,
  type SizeQuestion,
  sizesOf,
  USUAL_PRESETS,
} from "../src/cli/sizes.js";
import { byId, create } from "./dom.js";

const FIELDS = {
  layers: "model-layers",
  kvHeads: "model-kv-heads",
  headDim: "model-head-dim",
  tokens: "model-tokens",
} as const;

const MEBIBYTES = "MiB";
const UNITS = ["", MEBIBYTES, MEBIBYTES, MEBIBYTES, "than binary16", ""];

export class MemoryView {
  readonly #table = byId("memory", HTMLTableElement);
  readonly #note = byId("memory-note", HTMLElement);

  constructor() {
    const titles = SIZE_TITLES.map((title, i) => {
      return create("th", { scope: "col", role: "columnheader" }, title, create("small", {}, UNITS[i]));
    });
    this.#table.tHead!.append(create("tr", { role: "row" }, ...titles));
    byId("memory-form", HTMLFormElement).addEventListener("input", (event) => {
      // Not for the controls, which listen to the whole page.
      event.stopPropagation();
      this.#show();
    });
    this.#show();
  }

  #show(): void {
    try {
      const sizes = sizesOf(this.#read(), USUAL_PRESETS);
      this.#table.tBodies[0].replaceChildren(...sizes.map((size) => makeRow(sizeCells(size))));
      this.#note.textContent = `${formatMebibytes(sizes[0].f16Bytes)} MiB in binary16.`;
    } catch (error) {
      this.#table.tBodies[0].replaceChildren();
      this.#note.textContent = (error as Error).message;
    }
  }

  #read(): SizeQuestion {
    const read = (name: keyof typeof FIELDS): number => byId(FIELDS[name], HTMLInputElement).valueAsNumber;
    return {
      layers: read("layers"),
      kvHeads: read("kvHeads"),
      headDim: read("headDim"),
      tokens: read("tokens"),
      exactWindow: 0,
    };
  }
}

function makeRow([preset, ...cells]: readonly string[]): HTMLTableRowElement {
  const titled = cells.map((cell, i) => {
    const title = [SIZE_TITLES[i + 1], UNITS[i + 1]].filter(Boolean).join(", ");
    return create("td", { role: "cell", "data-title": title }, cell);
  });
  return create("tr", { role: "row" }, create("th", { scope: "row", role: "rowheader" }, preset), ...titled);
}
