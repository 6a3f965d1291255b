/** Bugs that others had, planted into records of the WASM backend: the comparison that all tests rely on sees them. */
import { afterAll, describe, expect, it } from "vitest";
import { openKvarn } from "../../src/index.js";
import { fromHalf, toHalf } from "../../src/half.js";
import { encodeBalanced, type NormalizedTile, packCodes } from "../../src/reference/index.js";
import { layoutOf, recordInput } from "../../src/conformance/checks/encode.js";
import { expectConforms } from "../../src/conformance/compare.js";
import { presetOf, type RecordCase } from "../../src/conformance/data.js";
import { goldenCases } from "../support/golden.js";
import { imbalance, iterates, transpose } from "../support/tiles.js";

const wasm = await openKvarn({ backend: "wasm", variant: "strict" });
afterAll(() => wasm.dispose());

/** The record of the first head. */
async function encodeFirst(golden: RecordCase): Promise<Uint8Array> {
  const { k, v } = recordInput(golden);
  const { kvHeads, headDim, iterations } = golden;
  const records = await wasm.encode(k, v, { preset: presetOf(golden), kvHeads, headDim, iterations });
  return records.subarray(0, layoutOf(golden).bytes);
}

/** K `[headDim, group]` and V `[group, headDim]` of the first head, rotated and rounded to binary16. */
async function firstTiles(golden: RecordCase): Promise<{ keys: Float32Array; values: Float32Array }> {
  const { kvHeads, headDim, group } = golden;
  const input = recordInput(golden);
  const rotated = async (x: Float32Array) => {
    const first = x.filter((_, i) => Math.floor(i / headDim) % kvHeads === 0);
    return (await wasm.rotate(first, { headDim })).map((value) => fromHalf(toHalf(value)));
  };
  return { keys: transpose(await rotated(input.k), group, headDim), values: await rotated(input.v) };
}

/** The tile divided by the scales of one iterate: the most even one, or the last. */
function normalized(
  tile: Float32Array,
  [rows, columns]: readonly [number, number],
  { iterations }: RecordCase,
  choice: "best" | "last",
): NormalizedTile {
  const all = [...iterates(tile, rows, columns, iterations)];
  const imbalances = all.map((scales) => imbalance(tile, scales));
  const best = imbalances.lastIndexOf(Math.min(...imbalances));
  const { rowScale, columnScale } = all[choice === "best" ? best : iterations];
  return {
    balanced: tile.map((x, i) => x / columnScale[i % columns] / rowScale[Math.floor(i / columns)]),
    rowScale: Float32Array.from(rowScale),
    columnScale: Float32Array.from(columnScale),
  };
}

describe("the comparison of records", () => {
  const hot = goldenCases.filter(({ kind }) => kind === "hot");

  it.each(hot.map((golden) => [golden.name, golden] as const))(
    "catches an encoder that keeps the last iterate, %s",
    async (_, golden) => {
      const layout = layoutOf(golden);
      const { headDim, group } = golden;
      const record = await encodeFirst(golden);
      const { keys, values } = await firstTiles(golden);
      const remake = (choice: "best" | "last") =>
        encodeBalanced(
          normalized(keys, [headDim, group], golden, choice),
          normalized(values, [group, headDim], golden, choice),
          layout,
        );
      expectConforms(record, remake("best"), layout);
      expect(() => expectConforms(record, remake("last"), layout)).toThrow(/codes of .* bits differ/);
      expect(() => expectConforms(remake("last"), record, layout)).toThrow(/codes of .* bits differ/);
    },
  );

  const square = goldenCases.filter(({ headDim, group, valueBits }) => headDim === group && valueBits === 2);

  it.each(square.map((golden) => [golden.name, golden] as const))(
    "catches 2-bit values read as 4-bit ones, and swapped scale axes, %s",
    async (_, golden) => {
      const layout = layoutOf(golden);
      const { headDim, group } = golden;
      const record = await encodeFirst(golden);

      const misread = record.slice();
      const codes = record.subarray(layout.vCodes, layout.vScale);
      const asFour = await wasm.unpack({ codes }, { rows: group, columns: headDim / 2, bits: 4, raw: true });
      const folded = Uint8Array.from({ length: group * headDim }, (_, i) => asFour[i % asFour.length] & 3);
      misread.set(packCodes(folded, 2), layout.vCodes);
      expect(() => expectConforms(misread, record, layout)).toThrow(/a code of V differs by [23]/);

      const swapped = record.slice();
      swapped.set(record.subarray(layout.vScale, layout.vToken), layout.vToken);
      swapped.set(record.subarray(layout.vToken, layout.vZero), layout.vScale);
      expect(() => expectConforms(swapped, record, layout)).toThrow(
        /v(Scale|Token|Zero)\[\d+\] of record 0 is off/,
      );
    },
  );
});
