/** Encoding on the GPU, and its two steps for tiles of f32. To be called within {@link Gpu.run}. */
import type { StoreShape, TileShape } from "../backend.js";
import { type Binding, type Gpu, grid } from "./gpu.js";
import type { Constants } from "./shader.js";

/** Elements of the largest tile that 256 invocations hold in registers. */
const MOST_KEPT = 1 << 15;

/**
 * Encodes full tiles of exact tokens: K and V of all KV heads.
 * @param exact `[token][2 (K, V)][kvHeads][headDim]` binary16 per tile, rotated
 * @param records kvHeads records per tile, one after another; not the buffer of `exact`
 * @param tiles byte offsets of the first token and of the first record of each, multiples of 16; at least one
 */
export function encode(
  gpu: Gpu,
  { kvHeads, headDim, layout, iterations }: Omit<StoreShape, "encoder">,
  exact: GPUBuffer,
  records: GPUBuffer,
  tiles: readonly { exact: number; record: number }[],
): void {
  const { group, keyBits, valueBits } = layout;
  const table = gpu.table(Uint32Array.from(tiles.flatMap(({ exact, record }) => [exact / 4, record / 4])));
  const bindings = [{ buffer: exact }, { buffer: records }, table];
  const count = tiles.length * kvHeads;
  const groups = grid(count);
  const kept = Number(headDim * group <= MOST_KEPT && !gpu.software);
  const fields = (...offsets: number[]) => [layout.bytes / 4, ...offsets.map((offset) => offset / 4)];

  gpu.dispatch({
    kernel: gpu.kernel("encode", { KEYS: 1, BITS: keyBits, ...patch(headDim, group, kept) }),
    params: [
      count,
      groups[0],
      kvHeads,
      iterations,
      ...fields(layout.kCodes, layout.kScale, layout.kZero, layout.kToken),
    ],
    bindings,
    groups,
  });
  gpu.dispatch({
    kernel: gpu.kernel("encode", { KEYS: 0, BITS: valueBits, ...patch(group, headDim, kept) }),
    params: [
      count,
      groups[0],
      kvHeads,
      iterations,
      ...fields(layout.vCodes, layout.vToken, layout.vZero, layout.vScale),
    ],
    bindings,
    groups,
  });
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
