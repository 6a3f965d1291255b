/** A matrix as a heat map on a canvas, with bars for the spread of its rows and columns at its right and lower edges. */
import { colorIndex, type ColorMapName, colorTable, onSchemeChange } from "./colors.js";

export interface HeatMapData {
  rows: number;
  columns: number;
  /** `[rows, columns]`; NaN is left blank. */
  values: Float32Array;
  colors: ColorMapName;
  /** Where a value is in the colour map, 0 to 1. */
  position: (value: number) => number;
  /** Bars that start at 0 and are drawn to the largest of their kind. */
  spread?: { rows: ArrayLike<number>; columns: ArrayLike<number> };
  /** What the picture shows, with its figures, for those who do not see it. */
  description: string;
}

/** Bars take so much of the width. */
const BARS = 0.13;
const GAP = 0.012;
/** Height of the map over its width; between these limits its cells are square. */
const LEAST_HEIGHT = 0.35;
const MOST_HEIGHT = 1;

/** Draws on one canvas, and again when its width or the colours of the page change. */
export class HeatMap {
  readonly #canvas: HTMLCanvasElement;
  #data: HeatMapData | undefined;
  #width = 0;

  constructor(canvas: HTMLCanvasElement) {
    this.#canvas = canvas;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "not drawn yet");
    new ResizeObserver(() => {
      if (this.#pixels() !== this.#width) this.#draw();
    }).observe(canvas);
    onSchemeChange(() => this.#draw());
  }

  show(data: HeatMapData): void {
    this.#data = data;
    this.#canvas.setAttribute("aria-label", data.description);
    this.#draw();
  }

  /** Width in pixels of the screen. */
  #pixels(): number {
    return Math.round(this.#canvas.clientWidth * devicePixelRatio);
  }

  #draw(): void {
    const data = this.#data;
    this.#width = this.#pixels();
    if (!data || this.#width === 0) return;
    const { rows, columns, spread } = data;
    const gap = spread ? Math.round(GAP * this.#width) : 0;
    const bars = spread ? Math.round(BARS * this.#width) : 0;
    const width = this.#width - bars - gap;
    const height = Math.round(width * Math.min(MOST_HEIGHT, Math.max(LEAST_HEIGHT, rows / columns)));
    this.#canvas.width = this.#width;
    this.#canvas.height = height + bars + gap;
    const context = this.#canvas.getContext("2d")!;
    // Cells that are smaller than pixels are averaged, larger ones keep their edges.
    context.imageSmoothingEnabled = columns > width || rows > height;
    context.drawImage(paint(data), 0, 0, width, height);
    if (!spread) return;
    context.fillStyle = getComputedStyle(this.#canvas).color;
    drawBars(spread.rows, height, bars, (from, to, size) =>
      context.fillRect(width + gap, from, size, to - from),
    );
    drawBars(spread.columns, width, bars, (from, to, size) =>
      context.fillRect(from, height + gap, to - from, size),
    );
  }
}

/** The matrix, one pixel an element. */
function paint({ rows, columns, values, colors, position }: HeatMapData): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(columns, rows);
  const table = colorTable(colors);
  values.forEach((value, i) => {
    if (Number.isNaN(value)) return;
    const color = colorIndex(position(value));
    image.data.set(table.subarray(color, color + 3), 4 * i);
    image.data[4 * i + 3] = 255;
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

/**
 * Draws bars side by side.
 * @param length of the edge that they stand on
 * @param most how long the longest is
 */
function drawBars(
  sizes: ArrayLike<number>,
  length: number,
  most: number,
  draw: (from: number, to: number, size: number) => void,
): void {
  const largest = Math.max(...Array.from(sizes));
  for (let i = 0; i < sizes.length; i++) {
    const from = (i * length) / sizes.length;
    const to = ((i + 1) * length) / sizes.length;
    draw(from, to, largest > 0 ? (most * sizes[i]) / largest : 0);
  }
}
