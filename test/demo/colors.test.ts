import { afterAll, describe, expect, it, vi } from "vitest";

const scheme = { matches: false, addEventListener: () => undefined };
vi.stubGlobal("matchMedia", () => scheme);
afterAll(() => vi.unstubAllGlobals());
const { colorIndex, colorTable, cssGradient } = await import("../../demo/colors.js");

/** CIE lightness, 0 to 100, of a colour of a table: what the maps are not made with. */
function lightness(table: Uint8ClampedArray, position: number): number {
  const at = colorIndex(position);
  const [red, green, blue] = [...table.subarray(at, at + 3)].map((byte) => {
    const value = byte / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  const luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  return luminance > 0.008856 ? 116 * Math.cbrt(luminance) - 16 : 903.3 * luminance;
}

/** Lightness of even steps from one position to another. */
function steps(table: Uint8ClampedArray, from: number, to: number): number[] {
  return Array.from({ length: 9 }, (_, i) => lightness(table, from + ((to - from) * i) / 8));
}

describe.each(["light", "dark"])("the colours of the %s scheme", (name) => {
  const sign = name === "light" ? -1 : 1;
  const open = (map: "sequential" | "diverging") => {
    scheme.matches = name === "dark";
    return colorTable(map);
  };

  it("go away from the page's ground in even steps", () => {
    const sequential = open("sequential");
    const diverging = open("diverging");
    for (const lights of [steps(sequential, 0, 1), steps(diverging, 0.5, 0), steps(diverging, 0.5, 1)]) {
      const changes = lights.slice(1).map((light, i) => sign * (light - lights[i]));
      expect(Math.min(...changes)).toBeGreaterThan(0);
      expect(Math.max(...changes)).toBeLessThan(2 * Math.min(...changes));
      expect(Math.abs(lights[8] - lights[0])).toBeGreaterThan(40);
    }
    // Neither sign is darker than the other.
    expect(Math.abs(lightness(diverging, 0) - lightness(diverging, 1))).toBeLessThan(6);
  });

  it("have the page's ground for nought, and are the legend's", () => {
    const at = colorIndex(0.5);
    const [red, green, blue] = open("diverging").subarray(at, at + 3);
    const ground = name === "light" ? 245 : 32;
    for (const byte of [red, green, blue]) expect(Math.abs(byte - ground)).toBeLessThan(4);
    expect(cssGradient("diverging")).toContain(`rgb(${red} ${green} ${blue})`);
    expect(colorIndex(-3)).toBe(0);
    expect(colorIndex(7)).toBe(3 * 255);
  });
});
