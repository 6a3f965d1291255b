/** The controls of the page: what is chosen, and a call back when that changes. */
import { formatInteger } from "../src/cli/text.js";
import { byId, fillSelect } from "./dom.js";
import type { LayerShape } from "./explorer.js";
import { CHOICES, DEFAULT_SETTINGS, type Settings } from "./settings.js";
import type { Part } from "./stages.js";

/** All that is chosen. */
export interface Choice {
  /** Counts from 0 in the order of the dump. */
  readonly layer: number;
  readonly head: number;
  readonly part: Part;
  /** Null where the layer has no whole tile. */
  readonly tile: number | null;
  readonly queryHead: number;
  readonly settings: Settings;
}

const SLIDERS = {
  keyBits: "key-bits",
  valueBits: "value-bits",
  group: "group",
  iterations: "iterations",
} as const;

/** How a slider's value reads. */
const UNITS = { keyBits: " bits", valueBits: " bits", group: " tokens", iterations: "" } as const;

export class Controls {
  readonly #layer = byId("layer", HTMLSelectElement);
  readonly #head = byId("head", HTMLSelectElement);
  readonly #queryHead = byId("query-head", HTMLSelectElement);
  readonly #tile = byId("tile", HTMLInputElement);
  #layers: readonly LayerShape[] = [];

  /** @param onChange called after each change by the user, once there are layers to choose from */
  constructor(onChange: () => void) {
    for (const [name, id] of Object.entries(SLIDERS) as [keyof Settings, string][]) {
      const slider = byId(id, HTMLInputElement);
      const choices: readonly number[] = CHOICES[name];
      slider.max = String(choices.length - 1);
      slider.value = String(choices.indexOf(DEFAULT_SETTINGS[name]));
    }
    this.#label();
    document.addEventListener("input", ({ target }) => {
      if (target === byId("file", HTMLInputElement) || this.#layers.length === 0) return;
      this.#fit();
      onChange();
    });
  }

  /** Offers the layers of another dump. */
  show(layers: readonly LayerShape[]): void {
    this.#layers = layers;
    fillSelect(
      this.#layer,
      layers.map(({ number }) => String(number)),
    );
    this.#fit();
    // The first tile that a cache encodes; out of range, it is the last one.
    this.#tile.value = "1";
    this.#label();
  }

  read(): Choice {
    const settings = this.#settings();
    return {
      layer: this.#layer.selectedIndex,
      head: this.#head.selectedIndex,
      part: byId("part-v", HTMLInputElement).checked ? "v" : "k",
      tile: this.#tiles(settings) > 0 ? Number(this.#tile.value) : null,
      queryHead: this.#queryHead.selectedIndex,
      settings,
    };
  }

  #settings(): Settings {
    const read = <Name extends keyof Settings>(name: Name): Settings[Name] => {
      return CHOICES[name][Number(byId(SLIDERS[name], HTMLInputElement).value)];
    };
    return {
      keyBits: read("keyBits"),
      valueBits: read("valueBits"),
      group: read("group"),
      iterations: read("iterations"),
    };
  }

  /** Whole tiles of the chosen layer. */
  #tiles({ group }: Settings): number {
    return Math.floor(this.#layers[this.#layer.selectedIndex].tokens / group);
  }

  /** Fits heads and tiles to the layer and the group. */
  #fit(): void {
    const layer = this.#layers[this.#layer.selectedIndex];
    fillSelect(this.#head, numbers(layer.kvHeads));
    fillSelect(this.#queryHead, numbers(layer.queryHeads));
    const tiles = this.#tiles(this.#settings());
    this.#tile.max = String(Math.max(0, tiles - 1));
    this.#tile.disabled = tiles < 2;
    this.#queryHead.disabled = layer.queryTokens === 0;
    this.#label();
  }

  /** Says beside each slider, and to those who hear it, what it is set to. */
  #label(): void {
    const settings = this.#settings();
    for (const [name, id] of Object.entries(SLIDERS) as [keyof Settings, string][]) {
      label(id, `${settings[name]}${UNITS[name]}`);
    }
    const first = Number(this.#tile.value) * settings.group;
    label("tile", `${formatInteger(first)} to ${formatInteger(first + settings.group - 1)}`);
  }
}

function label(id: string, text: string): void {
  byId(id, HTMLInputElement).setAttribute("aria-valuetext", text);
  byId(`${id}-value`, HTMLOutputElement).value = text;
}

function numbers(count: number): string[] {
  return Array.from({ length: count }, (_, i) => String(i));
}
