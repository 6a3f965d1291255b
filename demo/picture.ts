/** A heat map with its title, what it means, and a legend of its colours. */
import { type ColorMapName, cssGradient, onSchemeChange } from "./colors.js";
import { create } from "./dom.js";
import { HeatMap, type HeatMapData } from "./heat-map.js";

export interface PictureData extends HeatMapData {
  /** What the ends of the colours stand for, with units, and what lies between; least first. */
  legend: readonly string[];
  /** Lines beneath. */
  notes?: readonly string[];
}

export class Picture {
  readonly element: HTMLElement;
  readonly #map: HeatMap;
  readonly #bar = create("div", { class: "bar" });
  readonly #labels = create("div", { class: "labels" });
  readonly #notes = create("ul", { class: "notes" });
  #colors: ColorMapName | undefined;

  constructor(title: string, explanation: string) {
    const canvas = create("canvas");
    this.#map = new HeatMap(canvas);
    this.element = create(
      "figure",
      {},
      create("figcaption", {}, create("h3", {}, title), create("p", {}, explanation)),
      canvas,
      create("div", { class: "legend" }, this.#bar, this.#labels),
      this.#notes,
    );
    onSchemeChange(() => this.#color());
  }

  show(data: PictureData): void {
    this.#map.show(data);
    this.#colors = data.colors;
    this.#color();
    this.#labels.replaceChildren(...data.legend.map((label) => create("span", {}, label)));
    this.#notes.replaceChildren(...(data.notes ?? []).map((note) => create("li", {}, note)));
  }

  #color(): void {
    if (this.#colors) this.#bar.style.background = cssGradient(this.#colors);
  }
}
