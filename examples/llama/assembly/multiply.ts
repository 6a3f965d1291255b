// Products of activations with a matrix of weights.
//
// For many tokens 8 rows of weights at a time become a panel, [columns][8], that stays in the cache while the tokens go
// by in fours, [tokens / 4][columns][4]: each step multiplies two vectors of weights with four activations, and its eight
// sums stay in registers. For less than four tokens each row is dequantized once and multiplied as it is.

import { dequantize } from "./dequantize";

// Rows of a panel.
const ROWS: i32 = 8;
// Tokens that go by at a time.
const TOKENS: i32 = 4;

// y[token][row] = sum over columns of x[token][column] * weights[row][column]; rows of weights are `rowBytes` apart, columns
// a multiple of 4. x and y have room for a multiple of 4 tokens; what lies there behind the last one is no matter, and may
// change. `scratch` has room for 16 rows of x more than x.
export function multiply(
  type: i32,
  weights: usize,
  rowBytes: usize,
  rows: i32,
  columns: i32,
  x: usize,
  tokens: i32,
  y: usize,
  scratch: usize,
): void {
  const paneled = tokens < TOKENS ? 0 : rows & ~(ROWS - 1);
  const vectorBytes = (<usize>columns) << 2;
  const panel = scratch + <usize>ROWS * vectorBytes;
  const fours = panel + <usize>ROWS * vectorBytes;
  if (paneled > 0) interleave(x, tokens, vectorBytes, fours);
  for (let row = 0; row < paneled; row += ROWS) {
    for (let i = 0; i < ROWS; i++, weights += rowBytes) {
      dequantize(type, weights, scratch + <usize>i * vectorBytes, columns);
    }
    makePanel(scratch, vectorBytes, panel);
    multiplyPanel(panel, vectorBytes, fours, tokens, y + ((<usize>row) << 2), (<usize>rows) << 2);
  }
  for (let row = paneled; row < rows; row++, weights += rowBytes) {
    dequantize(type, weights, scratch, columns);
    for (let token = 0; token < tokens; token++) {
      const sum = dot(scratch, x + <usize>token * vectorBytes, vectorBytes);
      store<f32>(y + ((<usize>(token * rows + row)) << 2), sum);
    }
  }
}

// Fours of rows of x, element by element.
function interleave(x: usize, tokens: i32, vectorBytes: usize, target: usize): void {
  for (let token = 0; token < tokens; token += TOKENS) {
    for (const end = x + vectorBytes; x < end; x += 16, target += 64) {
      const a = v128.load(x);
      const b = v128.load(x + vectorBytes);
      const c = v128.load(x + 2 * vectorBytes);
      const d = v128.load(x + 3 * vectorBytes);
      transpose(a, b, c, d, target, 16);
    }
    x += <usize>(TOKENS - 1) * vectorBytes;
  }
}

// 8 rows, one after another, to a panel.
function makePanel(source: usize, vectorBytes: usize, target: usize): void {
  for (const end = source + vectorBytes; source < end; source += 16, target += 128) {
    let at = source;
    const a = v128.load(at);
    const b = v128.load((at += vectorBytes));
    const c = v128.load((at += vectorBytes));
    const d = v128.load((at += vectorBytes));
    transpose(a, b, c, d, target, 32);
    const e = v128.load((at += vectorBytes));
    const f = v128.load((at += vectorBytes));
    const g = v128.load((at += vectorBytes));
    const h = v128.load((at += vectorBytes));
    transpose(e, f, g, h, target + 16, 32);
  }
}

// Four vectors' first lanes, then their second ones, and so on, `stride` bytes apart.
@inline
function transpose(a: v128, b: v128, c: v128, d: v128, target: usize, stride: usize): void {
  const ab = v128.shuffle<f32>(a, b, 0, 4, 1, 5);
  const cd = v128.shuffle<f32>(c, d, 0, 4, 1, 5);
  v128.store(target, v128.shuffle<i64>(ab, cd, 0, 2));
  v128.store(target + stride, v128.shuffle<i64>(ab, cd, 1, 3));
  const abHigh = v128.shuffle<f32>(a, b, 2, 6, 3, 7);
  const cdHigh = v128.shuffle<f32>(c, d, 2, 6, 3, 7);
  v128.store(target + 2 * stride, v128.shuffle<i64>(abHigh, cdHigh, 0, 2));
  v128.store(target + 3 * stride, v128.shuffle<i64>(abHigh, cdHigh, 1, 3));
}

// All tokens with one panel; rows of y are `stride` bytes apart.
function multiplyPanel(
  panel: usize,
  vectorBytes: usize,
  x: usize,
  tokens: i32,
  y: usize,
  stride: usize,
): void {
  const end = panel + <usize>ROWS * vectorBytes;
  for (let token = 0; token < tokens; token += TOKENS) {
    let a = f32x4.splat(0);
    let b = a;
    let c = a;
    let d = a;
    let e = a;
    let f = a;
    let g = a;
    let h = a;
    for (let at = panel; at < end; at += 32, x += 16) {
      const low = v128.load(at);
      const high = v128.load(at, 16);
      const first = v128.load32_splat(x);
      a = f32x4.add(a, f32x4.mul(low, first));
      b = f32x4.add(b, f32x4.mul(high, first));
      const second = v128.load32_splat(x, 4);
      c = f32x4.add(c, f32x4.mul(low, second));
      d = f32x4.add(d, f32x4.mul(high, second));
      const third = v128.load32_splat(x, 8);
      e = f32x4.add(e, f32x4.mul(low, third));
      f = f32x4.add(f, f32x4.mul(high, third));
      const fourth = v128.load32_splat(x, 12);
      g = f32x4.add(g, f32x4.mul(low, fourth));
      h = f32x4.add(h, f32x4.mul(high, fourth));
    }
    storeRow(y, a, b);
    storeRow((y += stride), c, d);
    storeRow((y += stride), e, f);
    storeRow((y += stride), g, h);
    y += stride;
  }
}

@inline
function storeRow(y: usize, low: v128, high: v128): void {
  v128.store(y, low);
  v128.store(y, high, 16);
}

function dot(a: usize, b: usize, bytes: usize): f32 {
  let s = f32x4.splat(0);
  let t = s;
  let u = s;
  let v = s;
  const end = a + bytes;
  for (const last = a + (bytes & ~63); a < last; a += 64, b += 64) {
    s = f32x4.add(s, f32x4.mul(v128.load(a), v128.load(b)));
    t = f32x4.add(t, f32x4.mul(v128.load(a, 16), v128.load(b, 16)));
    u = f32x4.add(u, f32x4.mul(v128.load(a, 32), v128.load(b, 32)));
    v = f32x4.add(v, f32x4.mul(v128.load(a, 48), v128.load(b, 48)));
  }
  for (; a < end; a += 16, b += 16) s = f32x4.add(s, f32x4.mul(v128.load(a), v128.load(b)));
  s = f32x4.add(f32x4.add(s, t), f32x4.add(u, v));
  s = f32x4.add(s, v128.shuffle<f32>(s, s, 2, 3, 0, 1));
  return f32x4.extract_lane(s, 0) + f32x4.extract_lane(s, 1);
}
