/** What happens to one tile on its way into a record, step by step, by the package's own kernels. */
import type { Kvarn } from "../src/index.js";
import { deviation, relativeError } from "../src/cli/accuracy.js";
import { fromHalf, toHalf } from "../src/half.js";
import { columnDeviations, rowDeviations } from "../src/reference/normalize.js";
import { presetName, type Settings } from "./settings.js";

/** Keys or values. */
export type Part = "k" | "v";

/** Keys and values of the tokens of one tile, one head: `[tokens, headDim]` each. */
export interface HeadTile {
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly headDim: number;
}

/** A tile at one of its stages, always with a row for each channel and a column for each token. */
export interface Stage {
  /** `[headDim, tokens]` */
  readonly values: Float32Array;
  /** Standard deviation of each channel over the tokens. */
  readonly channels: Float64Array;
  /** Standard deviation of each token over the channels. */
  readonly tokens: Float64Array;
}

export interface Stages {
  readonly part: Part;
  readonly headDim: number;
  readonly tokens: number;
  readonly cache: Stage;
  readonly rotated: Stage;
  readonly normalized: Stage;
  readonly quantized: Stage;
  /** Relative L2 errors of what the tile's record decodes to; null for a tile of zeros. */
  readonly error: Record<Part, number | null>;
  /** The record: keys and values of these tokens and this head. */
  readonly recordBytes: number;
  /** The backend that computed all this. */
  readonly backend: string;
}

/** Takes one tile through all stages. */
export async function computeStages(
  kvarn: Kvarn,
  tile: HeadTile,
  part: Part,
  settings: Settings,
): Promise<Stages> {
  const { headDim } = tile;
  const tokens = tile.k.length / headDim;
  // Rows of a tile are channels for keys and tokens for values: that is the axis which gets a zero point.
  const channelRows = part === "k";
  const shape = channelRows ? { rows: headDim, columns: tokens } : { rows: tokens, columns: headDim };
  const stage = (values: Float32Array, byChannel: boolean): Stage => {
    const ordered = byChannel ? values : transpose(values, tokens, headDim);
    const exact = Float64Array.from(ordered);
    return {
      values: ordered,
      channels: rowDeviations(exact, headDim, tokens),
      tokens: columnDeviations(exact, headDim, tokens),
    };
  };

  // A cache holds rotated tokens in binary16 until their tile is full.
  const rotated = (await kvarn.rotate(tile[part], { headDim })).map((value) => fromHalf(toHalf(value)));
  const input = channelRows ? transpose(rotated, tokens, headDim) : rotated;
  const { balanced } = await kvarn.normalize(input, { ...shape, iterations: settings.iterations });
  const bits = part === "k" ? settings.keyBits : settings.valueBits;
  const packed = await kvarn.pack(balanced, { ...shape, bits });
  const quantized = await kvarn.unpack(packed, { ...shape, bits });

  const record = { preset: presetName(settings), kvHeads: 1, headDim };
  const bytes = await kvarn.encode(tile.k, tile.v, { ...record, iterations: settings.iterations });
  const decoded = await kvarn.decode(bytes, record);
  return {
    ...{ part, headDim, tokens },
    cache: stage(tile[part], false),
    rotated: stage(rotated, false),
    normalized: stage(balanced, channelRows),
    quantized: stage(quantized, channelRows),
    error: {
      k: relativeError(deviation(decoded.k, tile.k)),
      v: relativeError(deviation(decoded.v, tile.v)),
    },
    recordBytes: bytes.length,
    backend: `${kvarn.backend.kind} ${kvarn.backend.variant}`,
  };
}

/** `[rows, columns]` to `[columns, rows]`. */
function transpose(values: Float32Array, rows: number, columns: number): Float32Array {
  const result = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++)
      result[column * rows + row] = values[row * columns + column];
  }
  return result;
}
