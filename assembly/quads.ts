// Tiles as normalization and packing take them: f32 in quads of four rows, `[rows / 4][columns / 4][4 rows][4 columns]`. Four
// rows next to one another need one pointer, and are read and written in order.

import { loadHalf4 } from "./half";
import { held, storeTransposed } from "./lanes";
import { QUADS, TILE } from "./memory";
import { rotateFour, rotateRow } from "./rotate";

// A row-major f32 tile to QUADS.
export function loadQuads(source: usize, rows: i32, columns: i32): void {
  const rowBytes = (<usize>columns) << 2;
  let target = QUADS;
  for (let row = 0; row < rows; row += 4, source += 3 * rowBytes) {
    for (const end = source + rowBytes; source < end; source += 16, target += 64) {
      v128.store(target, v128.load(source));
      v128.store(target, v128.load(source + rowBytes), 16);
      v128.store(target, v128.load(source + 2 * rowBytes), 32);
      v128.store(target, v128.load(source + 3 * rowBytes), 48);
    }
  }
}

// K of one head, `tokens` exact tokens, one every `stride` bytes, channel-major to QUADS.
export function loadKeyQuads(source: usize, stride: usize, tokens: i32, headDim: i32): void {
  let target = QUADS;
  for (const end = source + ((<usize>headDim) << 1); source < end; source += 8) {
    let at = source;
    for (let token = 0; token < tokens; token += 4, at += 4 * stride, target += 64) {
      storeTransposed(
        loadHalf4(at),
        loadHalf4(at + stride),
        loadHalf4(at + 2 * stride),
        loadHalf4(at + 3 * stride),
        target,
        16,
      );
    }
  }
}

// V of one head, token-major, likewise.
export function loadValueQuads(source: usize, stride: usize, tokens: i32, headDim: i32): void {
  const bytes = (<usize>headDim) << 1;
  let target = QUADS;
  for (let token = 0; token < tokens; token += 4, source += 4 * stride - bytes) {
    for (const end = source + bytes; source < end; source += 8, target += 64) {
      v128.store(target, loadHalf4(source));
      v128.store(target, loadHalf4(source + stride), 16);
      v128.store(target, loadHalf4(source + 2 * stride), 32);
      v128.store(target, loadHalf4(source + 3 * stride), 48);
    }
  }
}

// K of one head, `tokens` tokens of f32 as they come, one every `stride` bytes: rotated, rounded to binary16, channel-major to
// QUADS. False where one is not finite there.
export function rotateKeyQuads(source: usize, stride: usize, tokens: i32, headDim: i32): bool {
  const quadBytes = (<usize>tokens) << 4;
  let most = i32x4.splat(0);
  for (let token = 0; token < tokens; token += 4, source += 4 * stride) {
    rotateFour(source, stride, TILE, headDim);
    const target = QUADS + ((<usize>token) << 4);
    most = i32x4.max_s(most, roundFours(16, 64, target, quadBytes, headDim >> 2));
  }
  return areFinite(most);
}

// V of one head, token-major, likewise.
export function rotateValueQuads(source: usize, stride: usize, tokens: i32, headDim: i32): bool {
  const rowBytes = (<usize>headDim) << 2;
  let target = QUADS;
  let most = i32x4.splat(0);
  for (let token = 0; token < tokens; token += 4, target += 4 * rowBytes) {
    for (let row: usize = TILE; row < TILE + 4 * rowBytes; row += rowBytes, source += stride) {
      rotateRow(source, row, headDim);
    }
    most = i32x4.max_s(most, roundFours(rowBytes, 16, target, 64, headDim >> 2));
  }
  return areFinite(most);
}

// Whether these are exponents of numbers that are finite in binary16.
@inline
function areFinite(exponents: v128): bool {
  return !v128.any_true(i32x4.gt_s(exponents, i32x4.splat((127 + 15) << 23)));
}

// Rounds what lies in TILE to binary16, as `storeHalves` does, but leaves it f32. Vectors go by fours: of each, they lie
// `rowStep` bytes apart; fours lie `step` bytes apart, and go to `target`, `targetStep` bytes apart. Returns the largest
// exponents.
function roundFours(rowStep: usize, step: usize, target: usize, targetStep: usize, count: i32): v128 {
  const exponentMask = held(0, i32x4.splat(0x7f800000));
  const leastExponent = held(1, i32x4.splat((127 - 14) << 23));
  const places = held(2, i32x4.splat((13 << 23) | (1 << 22)));
  const signMask = held(3, i32x4.splat(0x80000000));
  let source: usize = TILE;
  let most = i32x4.splat(0);
  for (const end = target + <usize>count * targetStep; target < end; target += targetStep) {
    const a = v128.load(source);
    const b = v128.load(source + rowStep);
    const c = v128.load(source + 2 * rowStep);
    const d = v128.load(source + 3 * rowStep);
    const aPower = i32x4.add(i32x4.max_s(v128.and(a, exponentMask), leastExponent), places);
    const aRounded = f32x4.sub(f32x4.add(aPower, a), aPower);
    most = i32x4.max_s(most, v128.and(aRounded, exponentMask));
    v128.store(target, v128.or(aRounded, v128.and(a, signMask)), 0);
    const bPower = i32x4.add(i32x4.max_s(v128.and(b, exponentMask), leastExponent), places);
    const bRounded = f32x4.sub(f32x4.add(bPower, b), bPower);
    most = i32x4.max_s(most, v128.and(bRounded, exponentMask));
    v128.store(target, v128.or(bRounded, v128.and(b, signMask)), 16);
    const cPower = i32x4.add(i32x4.max_s(v128.and(c, exponentMask), leastExponent), places);
    const cRounded = f32x4.sub(f32x4.add(cPower, c), cPower);
    most = i32x4.max_s(most, v128.and(cRounded, exponentMask));
    v128.store(target, v128.or(cRounded, v128.and(c, signMask)), 32);
    const dPower = i32x4.add(i32x4.max_s(v128.and(d, exponentMask), leastExponent), places);
    const dRounded = f32x4.sub(f32x4.add(dPower, d), dPower);
    most = i32x4.max_s(most, v128.and(dRounded, exponentMask));
    v128.store(target, v128.or(dRounded, v128.and(d, signMask)), 48);
    source += step;
  }
  return most;
}
