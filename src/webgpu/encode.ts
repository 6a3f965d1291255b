/** Encoding on the GPU, and its two steps for tiles of f32. To be called within {@link Gpu.run}. */
import type { StoreShape, TileShape } from "../backend.js";
import { type Binding, type Gpu, grid } from "./gpu.js";
import type { Constants } from "./shader.js";

/** Elements of the largest tile that 256 invocations hold in registers. */
const MOST_KEPT = 1 << 15;

/** Most bytes of errors of K that are held at a time. */
const PART_BYTES = 1 << 25;

/** Rows of a workgroup of the refined encoder, where each is rounded by itself. */
const SPAN = 16;

/**
 * Encodes full tiles of exact tokens: K and V of all KV heads.
 * @param exact `[token][2 (K, V)][kvHeads][headDim]` binary16 per tile, rotated
 * @param records kvHeads records per tile, one after another; not the buffer of `exact`
 * @param tiles byte offsets of the first token and of the first record of each, multiples of 16; at least one
 * @param factors for the refined encoder, what queries are known of K: of `factorQueries`
 * @param partBytes most bytes of errors of K that are held at a time
 */
export function encode(
  gpu: Gpu,
  shape: StoreShape,
  exact: GPUBuffer,
  records: GPUBuffer,
  tiles: readonly { exact: number; record: number }[],
  factors?: Binding,
  partBytes = PART_BYTES,
): void {
  const { kvHeads, headDim, layout, iterations, encoder } = shape;
  const { group, keyBits, valueBits } = layout;
  const errorBytes = kvHeads * headDim * group * 4;
  const atOnce = factors ? Math.max(1, Math.floor(partBytes / errorBytes)) : tiles.length;
  if (tiles.length > atOnce) {
    for (let from = 0; from < tiles.length; from += atOnce) {
      encode(gpu, shape, exact, records, tiles.slice(from, from + atOnce), factors, partBytes);
    }
    return;
  }
  const table = gpu.table(Uint32Array.from(tiles.flatMap(({ exact, record }) => [exact / 4, record / 4])));
  const count = tiles.length * kvHeads;
  const kept = Number(headDim * group <= MOST_KEPT && !gpu.software);

  const encodeSide = (keys: boolean, bits: number, rows: number, columns: number, fields: number[]) => {
    const dispatch = (name: string, constants: Constants, parts = 1, more: readonly Binding[] = []) => {
      const groups = grid(count * parts);
      gpu.dispatch({
        kernel: gpu.kernel(name, { KEYS: Number(keys), ...constants }),
        params: [count, groups[0], kvHeads, iterations, layout.bytes / 4, ...fields.map((byte) => byte / 4)],
        bindings: [{ buffer: exact }, { buffer: records }, table, ...more],
        groups,
      });
    };
    const tile = patch(rows, columns, kept);
    if (encoder === "strict") {
      dispatch("encode", { BITS: bits, ...tile });
      return;
    }
    dispatch("refine-columns", tile);
    const known =
      keys && factors ? [factors, { buffer: gpu.scratch("errors", tiles.length * errorBytes) }] : [];
    // Where no row makes up for others, they need not go one after another.
    const span = keys && !factors ? SPAN : rows;
    const constants = {
      FACTORED: Number(known.length > 0),
      ROWS: rows,
      COLUMNS: columns,
      BITS: bits,
      // Those of `keyRanges` in the reference, which would bring much along.
      RANGES: keys && bits > 2 ? 1 : 4,
      SPAN: span,
      THREADS: Math.ceil(columns / 128) * 32,
    };
    dispatch("refine", constants, rows / span, known);
  };
  const { kCodes, kScale, kZero, kToken, vCodes, vScale, vToken, vZero } = layout;
  encodeSide(true, keyBits, headDim, group, [kCodes, kScale, kZero, kToken]);
  encodeSide(false, valueBits, group, headDim, [vCodes, vToken, vZero, vScale]);
}

/**
 * Normalizes tiles.
 * @param tiles f32 `[count, rows, columns]`, rows and columns as head sizes are, at most 65,536 elements a tile
 * @param out f32 `[count, rows, columns]`, `[count, rows]` and `[count, columns]`
 */
export function normalize(
  gpu: Gpu,
  tiles: Binding,
  { rows, columns, count }: TileShape,
  iterations: number,
  out: { balanced: Binding; rowScale: Binding; columnScale: Binding },
): void {
  const groups = grid(count);
  gpu.dispatch({
    kernel: gpu.kernel("normalize", patch(rows, columns, 0)),
    params: [count, groups[0], iterations],
    bindings: [tiles, out.balanced, out.rowScale, out.columnScale],
    groups,
  });
}

/**
 * Rounds each row of tiles to `2^bits` values.
 * @param balanced f32 `[count, rows, columns]`, as for {@link normalize}
 * @param out a little-endian stream of `bits` per code for each tile, and f32 `[count, rows]` twice
 */
export function pack(
  gpu: Gpu,
  balanced: Binding,
  { rows, columns, count }: TileShape,
  bits: number,
  out: { codes: Binding; scale: Binding; zero: Binding },
): void {
  const groups = grid(count);
  gpu.dispatch({
    kernel: gpu.kernel("pack", { BITS: bits, ...patch(rows, columns, 0) }),
    params: [count, groups[0]],
    bindings: [balanced, out.codes, out.scale, out.zero],
    groups,
  });
}

/**
 * The constants of `patch.wgsl` and `normalization.wgsl`.
 * @param kept 1 for tiles in registers
 */
function patch(rows: number, columns: number, kept: number): Constants {
  return { ROWS: rows, COLUMNS: columns, KEPT: kept, BLOCKS: kept ? 1 : rows / 16 };
}
