// Panels: a tile cut into strips of 8 columns, each strip's rows after one another, `[columns / 8][rows][8]`. What goes
// over a strip from its first row to its last reads memory strictly forward and keeps the strip's sums in registers.
// Channels are the rows of K's panels, tokens those of V's.
//
// Panels lie a cache line apart: with sizes of powers of two, one row's strips would all fall into the same set of a cache
// and drive each other out.

import { loadHalf4 } from "./half";
import { storeTransposed } from "./lanes";
import { BEST_COLUMN_SCALE, CODE_SCALE, CODE_ZERO, PANEL_GAP } from "./memory";

// Bytes of 8 columns of a row, as f32.
export const STRIP: usize = 32;

// From one panel to the next.
@inline
export function panelBytes(rows: i32): usize {
  return <usize>rows * STRIP + PANEL_GAP;
}

// K of one head's exact tokens. Columns are `tokens` rounded up to a multiple of 16; those beyond repeat the last token.
export function loadKeyPanels(source: usize, stride: usize, tokens: i32, headDim: i32, target: usize): void {
  for (let first = 0; first < ((tokens + 15) & ~15); first += 8) {
    for (let half = first; half < first + 8; half += 4) {
      const a = source + <usize>min(half, tokens - 1) * stride;
      const b = source + <usize>min(half + 1, tokens - 1) * stride;
      const c = source + <usize>min(half + 2, tokens - 1) * stride;
      const d = source + <usize>min(half + 3, tokens - 1) * stride;
      let out = target + ((<usize>(half - first)) << 2);
      for (let at: usize = 0, end = (<usize>headDim) << 1; at < end; at += 8, out += 4 * STRIP) {
        storeTransposed(
          loadHalf4(a + at),
          loadHalf4(b + at),
          loadHalf4(c + at),
          loadHalf4(d + at),
          out,
          STRIP,
        );
      }
    }
    target += panelBytes(headDim);
  }
}

// V of one head's exact tokens.
export function loadValuePanels(
  source: usize,
  stride: usize,
  tokens: i32,
  headDim: i32,
  target: usize,
): void {
  const step = panelBytes(tokens);
  for (let token = 0; token < tokens; token++, source += stride, target += STRIP) {
    let out = target;
    for (let at = source, end = source + ((<usize>headDim) << 1); at < end; at += 16, out += step) {
      v128.store(out, loadHalf4(at));
      v128.store(out, loadHalf4(at, 8), 16);
    }
  }
}

// Codes of one byte each to the values they stand for: rows' scales in CODE_SCALE and CODE_ZERO, columns' in
// BEST_COLUMN_SCALE.
export function scaleToPanels(codes: usize, rows: i32, columns: i32, target: usize): void {
  const step = panelBytes(rows);
  for (let row: usize = 0; row < <usize>rows; row++, target += STRIP) {
    const scale = v128.load32_splat(CODE_SCALE + (row << 2));
    const zero = v128.load32_splat(CODE_ZERO + (row << 2));
    let by: usize = BEST_COLUMN_SCALE;
    let out = target;
    for (const end = codes + <usize>columns; codes < end; codes += 8, by += 32, out += step) {
      const x = v128.load8x8_u(codes);
      const a = f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_u(x));
      const b = f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_u(x));
      v128.store(out, f32x4.mul(f32x4.add(f32x4.mul(a, scale), zero), v128.load(by)));
      v128.store(out, f32x4.mul(f32x4.add(f32x4.mul(b, scale), zero), v128.load(by, 16)), 16);
    }
  }
}

// Codes of one byte each to panels of 16-bit codes, those of two neighbouring rows side by side:
// `[columns / 8][rows / 2][8][2]`.
export function pairToPanels(codes: usize, rows: i32, columns: i32, target: usize): void {
  const step = panelBytes(rows >> 1);
  const next = <usize>columns;
  for (let row = 0; row < rows; row += 2, codes += next, target += STRIP) {
    let out = target;
    for (const end = codes + next; codes < end; codes += 8, out += step) {
      const x = v128.load8x8_u(codes);
      const y = v128.load8x8_u(codes + next);
      v128.store(out, v128.shuffle<i16>(x, y, 0, 8, 1, 9, 2, 10, 3, 11));
      v128.store(out, v128.shuffle<i16>(x, y, 4, 12, 5, 13, 6, 14, 7, 15), 16);
    }
  }
}
