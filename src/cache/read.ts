/** From the tiles of a layer back to K and V. */
import type { Backend, Outliers } from "../backend.js";
import { decodeTiles, type KeysAndValues } from "../codec.js";
import type { ResolvedLayer } from "../config.js";
import { fromHalf } from "../half.js";
import type { SavedLayer } from "./serialize.js";

/**
 * K and V of all tokens of a layer, rotated back.
 * @param tokens those of a layer of which no tile was let go
 */
export async function readTiles(
  backend: Backend,
  layer: ResolvedLayer,
  { tiles, outliers }: Pick<SavedLayer, "tiles" | "outliers">,
): Promise<KeysAndValues> {
  const width = layer.kvHeads * layer.headDim;
  const perTile = layer.layout.group * width;
  const isRecord = (tile: number): boolean => tiles[tile] instanceof Uint8Array;
  const numbers = [...tiles.keys()];
  const encoded = numbers.filter(isRecord);
  const exact = numbers.filter((tile) => !isRecord(tile)).map((tile) => tiles[tile] as Uint16Array);

  const sum = exact.reduce((elements, { length }) => elements + length, 0);
  const length = encoded.length * perTile + sum / 2;
  const [k, v] = [new Float32Array(length), new Float32Array(length)];

  // Exact tiles, `[tokens, 2 (K, V), kvHeads, headDim]`, in one go: a GPU takes its time for each.
  const rows = new Float32Array(sum);
  let at = 0;
  for (const tile of exact) for (const half of tile) rows[at++] = fromHalf(half);
  if (sum > 0) await backend.rotate(rows, layer.headDim, rows);

  const [kRecords, vRecords] = [0, 1].map(() => new Float32Array(encoded.length * perTile));
  const recordsOf = (i: number): Uint8Array => tiles[encoded[i]] as Uint8Array;
  if (encoded.length > 0) await decodeTiles(backend, layer, encoded.length, recordsOf, kRecords, vRecords);

  let [nextRow, nextRecord] = [0, 0];
  for (const tile of numbers) {
    const place = tile * perTile;
    if (isRecord(tile)) {
      k.set(kRecords.subarray(nextRecord, nextRecord + perTile), place);
      v.set(vRecords.subarray(nextRecord, nextRecord + perTile), place);
      nextRecord += perTile;
    } else {
      const end = nextRow + tiles[tile]!.length;
      for (let to = place; nextRow < end; to += width, nextRow += 2 * width) {
        k.set(rows.subarray(nextRow, nextRow + width), to);
        v.set(rows.subarray(nextRow + width, nextRow + 2 * width), to);
      }
    }
  }
  if (outliers) await putOutliers(backend, layer, outliers, k, v);
  return { k, v };
}

/** Puts outlier tokens where records have others for them. */
async function putOutliers(
  backend: Backend,
  { kvHeads, headDim }: ResolvedLayer,
  { positions, data }: Outliers,
  k: Float32Array,
  v: Float32Array,
): Promise<void> {
  const rows = Float32Array.from(data, fromHalf);
  await backend.rotate(rows, headDim, rows);
  let at = 0;
  positions.forEach((ofHead, head) => {
    for (const position of ofHead) {
      const place = (position * kvHeads + head) * headDim;
      k.set(rows.subarray(at, at + headDim), place);
      v.set(rows.subarray(at + headDim, at + 2 * headDim), place);
      at += 2 * headDim;
    }
  });
}
