// Records: one K tile and its V tile. Field offsets come from the caller: the record layout is TypeScript's alone.

import { HALF_MAX, loadHalves, storeHalves } from "./half";
import { storeTransposed } from "./lanes";
import {
  BEST_COLUMN_SCALE,
  BEST_ROW_SCALE,
  CODE_SCALE,
  CODE_ZERO,
  COLUMN_INVERSE,
  K_BYTES,
  ROW_INVERSE,
  TILE,
  TRANSPOSED,
  V_BYTES,
} from "./memory";
import { normalizeTile } from "./normalize";
import { openRows, packRows, scaleRows } from "./pack";
import { loadKeyQuads, loadValueQuads, rotateKeyQuads, rotateValueQuads } from "./quads";
import { rotateRows } from "./rotate";
import { invert, magnitude, multiply, scale } from "./vectors";

// Normalizes and packs the tile in QUADS: codes, then the scales with the rounding pair taken in, as binary16.
function encodeTile(
  rows: i32,
  columns: i32,
  bits: i32,
  iterations: i32,
  codes: usize,
  rowScale: usize,
  rowZero: usize,
  columnScale: usize,
): void {
  normalizeTile(rows, columns, iterations);
  invert(BEST_ROW_SCALE, ROW_INVERSE, rows);
  invert(BEST_COLUMN_SCALE, COLUMN_INVERSE, columns);
  // Packing writes past its last row; the scales that lie there come after.
  packRows(rows, columns, bits, codes);
  multiply(CODE_SCALE, BEST_ROW_SCALE, rows);
  multiply(CODE_ZERO, BEST_ROW_SCALE, rows);
  // Zero points of an even tile near 65504 exceed binary16 by up to a third: the columns can take a factor.
  if (magnitude(CODE_ZERO, rows) > HALF_MAX) {
    scale(CODE_SCALE, 0.5, rows);
    scale(CODE_ZERO, 0.5, rows);
    scale(BEST_COLUMN_SCALE, 2, columns);
  }
  storeHalves(CODE_SCALE, rowScale, rows);
  storeHalves(CODE_ZERO, rowZero, rows);
  storeHalves(BEST_COLUMN_SCALE, columnScale, columns);
}

// Encodes the K tile of one head from `group` exact tokens at `source`, one every `stride` bytes.
export function encodeKeys(
  source: usize,
  stride: usize,
  headDim: i32,
  group: i32,
  bits: i32,
  iterations: i32,
  codes: usize,
  scale: usize,
  zero: usize,
  token: usize,
): void {
  loadKeyQuads(source, stride, group, headDim);
  encodeTile(headDim, group, bits, iterations, codes, scale, zero, token);
}

// The same from tokens of f32 as they come; false where one is not finite in binary16.
export function encodeNewKeys(
  source: usize,
  stride: usize,
  headDim: i32,
  group: i32,
  bits: i32,
  iterations: i32,
  codes: usize,
  scale: usize,
  zero: usize,
  token: usize,
): bool {
  if (!rotateKeyQuads(source, stride, group, headDim)) return false;
  encodeTile(headDim, group, bits, iterations, codes, scale, zero, token);
  return true;
}

// Encodes the V tile of one head.
export function encodeValues(
  source: usize,
  stride: usize,
  headDim: i32,
  group: i32,
  bits: i32,
  iterations: i32,
  codes: usize,
  scale: usize,
  token: usize,
  zero: usize,
): void {
  loadValueQuads(source, stride, group, headDim);
  encodeTile(group, headDim, bits, iterations, codes, token, zero, scale);
}

// The same from tokens of f32 as they come.
export function encodeNewValues(
  source: usize,
  stride: usize,
  headDim: i32,
  group: i32,
  bits: i32,
  iterations: i32,
  codes: usize,
  scale: usize,
  token: usize,
  zero: usize,
): bool {
  if (!rotateValueQuads(source, stride, group, headDim)) return false;
  encodeTile(group, headDim, bits, iterations, codes, token, zero, scale);
  return true;
}

// The K tile of a record, still rotated, channel-major f32 `[headDim, group]` in TILE.
function openKeys(
  headDim: i32,
  group: i32,
  bits: i32,
  codes: usize,
  scale: usize,
  zero: usize,
  token: usize,
): void {
  openTile(headDim, group, bits, codes, scale, zero, token, K_BYTES, TILE);
}

// The V tile of a record, still rotated, token-major f32 `[group, headDim]` in TILE.
function openValues(
  headDim: i32,
  group: i32,
  bits: i32,
  codes: usize,
  scale: usize,
  token: usize,
  zero: usize,
): void {
  openTile(group, headDim, bits, codes, token, zero, scale, V_BYTES, TILE);
}

function openTile(
  rows: i32,
  columns: i32,
  bits: i32,
  codes: usize,
  rowScale: usize,
  rowZero: usize,
  columnScale: usize,
  bytes: usize,
  target: usize,
): void {
  loadHalves(rowScale, CODE_SCALE, rows);
  loadHalves(rowZero, CODE_ZERO, rows);
  loadHalves(columnScale, BEST_COLUMN_SCALE, columns);
  openRows(codes, rows, columns, bits, bytes);
  scaleRows(bytes, rows, columns, CODE_SCALE, CODE_ZERO, target);
  for (let i = 0; i < rows; i++, target += (<usize>columns) << 2)
    multiply(target, BEST_COLUMN_SCALE, columns);
}

// Decodes K of one record, rotated back, to `group` tokens of f32, one every `stride` bytes.
export function decodeKeys(
  headDim: i32,
  group: i32,
  bits: i32,
  codes: usize,
  scale: usize,
  zero: usize,
  token: usize,
  target: usize,
  stride: usize,
): void {
  openKeys(headDim, group, bits, codes, scale, zero, token);
  const rowBytes = (<usize>group) << 2;
  const tokenBytes = (<usize>headDim) << 2;
  for (let channel = 0; channel < headDim; channel += 4) {
    const row = TILE + <usize>channel * rowBytes;
    let out = TRANSPOSED + ((<usize>channel) << 2);
    for (let at = row; at < row + rowBytes; at += 16, out += 4 * tokenBytes) {
      storeTransposed(
        v128.load(at),
        v128.load(at + rowBytes),
        v128.load(at + 2 * rowBytes),
        v128.load(at + 3 * rowBytes),
        out,
        tokenBytes,
      );
    }
  }
  storeTokens(TRANSPOSED, headDim, group, target, stride);
}

// Decodes V of one record likewise.
export function decodeValues(
  headDim: i32,
  group: i32,
  bits: i32,
  codes: usize,
  scale: usize,
  token: usize,
  zero: usize,
  target: usize,
  stride: usize,
): void {
  openValues(headDim, group, bits, codes, scale, token, zero);
  storeTokens(TILE, headDim, group, target, stride);
}

// Rotates token-major rows and spreads them.
function storeTokens(rows: usize, headDim: i32, group: i32, target: usize, stride: usize): void {
  rotateRows(rows, group, headDim);
  const bytes = (<usize>headDim) << 2;
  for (let token = 0; token < group; token++, rows += bytes, target += stride)
    memory.copy(target, rows, bytes);
}
