/** Colour maps whose steps look even: a few points in Oklab (Ottosson, 2020), joined by straight lines there. */

/** Lightness from 0 to 1, green to red, blue to yellow. */
type Oklab = readonly [lightness: number, a: number, b: number];

export type ColorMapName = "diverging" | "sequential";

/** From the least to the largest value; nought of the diverging map and the sequential one's least are the page's ground. */
const POINTS: Record<"light" | "dark", Record<ColorMapName, readonly Oklab[]>> = {
  light: {
    diverging: [
      [0.4, -0.02, -0.15],
      [0.97, 0, 0],
      [0.4, 0.12, 0.08],
    ],
    sequential: [
      [0.97, 0, 0],
      [0.65, -0.08, -0.03],
      [0.3, 0.01, -0.11],
    ],
  },
  dark: {
    diverging: [
      [0.82, -0.06, -0.1],
      [0.24, 0, 0],
      [0.82, 0.06, 0.1],
    ],
    sequential: [
      [0.24, 0, 0],
      [0.58, -0.08, -0.04],
      [0.93, -0.04, 0.11],
    ],
  },
};

const STEPS = 256;
const darkScheme = matchMedia("(prefers-color-scheme: dark)");

/** Calls back whenever the colours of the page change. */
export function onSchemeChange(callback: () => void): void {
  darkScheme.addEventListener("change", callback);
}

/** A colour map for the present colour scheme: red, green and blue bytes of even steps from least to largest. */
export function colorTable(name: ColorMapName): Uint8ClampedArray {
  const points = POINTS[darkScheme.matches ? "dark" : "light"][name];
  const table = new Uint8ClampedArray(STEPS * 3);
  for (let step = 0; step < STEPS; step++) table.set(toBytes(between(points, step / (STEPS - 1))), step * 3);
  return table;
}

/** Where in a table the colour of a position from 0 to 1 begins. */
export function colorIndex(position: number): number {
  return 3 * Math.round(Math.min(1, Math.max(0, position)) * (STEPS - 1));
}

/** The map as a CSS gradient, from left to right. */
export function cssGradient(name: ColorMapName): string {
  const table = colorTable(name);
  const stops = Array.from({ length: 17 }, (_, i) => {
    const at = colorIndex(i / 16);
    return `rgb(${table[at]} ${table[at + 1]} ${table[at + 2]})`;
  });
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

function between(points: readonly Oklab[], position: number): Oklab {
  const at = position * (points.length - 1);
  const left = Math.min(Math.floor(at), points.length - 2);
  const mix = (part: 0 | 1 | 2): number => {
    return points[left][part] + (at - left) * (points[left + 1][part] - points[left][part]);
  };
  return [mix(0), mix(1), mix(2)];
}

function toBytes([lightness, a, b]: Oklab): number[] {
  const long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const short = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
    -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
    -0.0041960863 * long - 0.7034186147 * middle + 1.707614701 * short,
  ];
  return linear.map((light) => 255 * gamma(Math.min(1, Math.max(0, light))));
}

/** Light to sRGB. */
function gamma(light: number): number {
  return light <= 0.0031308 ? 12.92 * light : 1.055 * light ** (1 / 2.4) - 0.055;
}
