// The single kernels on one tile, for callers that want a step of the method alone. Input and output lie in the working
// memory: the tile in TILE, packed codes in V_BYTES, codes of one byte each in K_BYTES.

import {
  BEST_COLUMN_SCALE,
  BEST_ROW_SCALE,
  CODE_SCALE,
  CODE_ZERO,
  COLUMN_INVERSE,
  K_BYTES,
  ROW_INVERSE,
  TILE,
  V_BYTES,
} from "./memory";
import { normalizeTile } from "./normalize";
import { openRows, packRows, scaleRows } from "./pack";
import { loadQuads } from "./quads";
import { fill, invert, multiply, scale } from "./vectors";

// Balances the tile; its scales are in BEST_ROW_SCALE and BEST_COLUMN_SCALE then.
export function normalize(rows: i32, columns: i32, iterations: i32): void {
  loadQuads(TILE, rows, columns);
  normalizeTile(rows, columns, iterations);
  invert(BEST_ROW_SCALE, ROW_INVERSE, rows);
  invert(BEST_COLUMN_SCALE, COLUMN_INVERSE, columns);
  let row: usize = TILE;
  for (let i = 0; i < rows; i++, row += (<usize>columns) << 2) {
    multiply(row, COLUMN_INVERSE, columns);
    scale(row, load<f32>(ROW_INVERSE + ((<usize>i) << 2)), columns);
  }
}

// Packs the tile as it is; CODE_SCALE and CODE_ZERO get a pair for each row.
export function pack(rows: i32, columns: i32, bits: i32): void {
  fill(ROW_INVERSE, rows, 1);
  fill(COLUMN_INVERSE, columns, 1);
  loadQuads(TILE, rows, columns);
  packRows(rows, columns, bits, V_BYTES);
}

// Packed codes to codes of one byte each.
export function unpackCodes(rows: i32, columns: i32, bits: i32): void {
  openRows(V_BYTES, rows, columns, bits, K_BYTES);
}

// Packed codes and the pairs in CODE_SCALE and CODE_ZERO to values.
export function unpack(rows: i32, columns: i32, bits: i32): void {
  openRows(V_BYTES, rows, columns, bits, K_BYTES);
  scaleRows(K_BYTES, rows, columns, CODE_SCALE, CODE_ZERO, TILE);
}
