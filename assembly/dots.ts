// Weighted sums of the rows of a tile as it lies in a record, for up to four sets of coefficients (query heads) at once:
// `out[head][column] = sum over rows of coefficient[head][row] * code[row][column]`. With K channel-major and V
// token-major, scores and weighted values are both of this form.
//
// 16-bit words of two neighbouring rows lie side by side, so that shifting a code field down leaves pairs of codes of one
// column, as `i32x4.dot_i16x8_s` wants them. The fields above it are left in: their sums are known from the next field up
// and taken off at the end, which saves masks here, where it counts. Sums may wrap on the way, by multiples of 2^32 that
// taking off takes away again. Few sums at a time are kept, since engines that run out of vector registers put sums to
// memory, and the loop waits for them.

import { storeTransposed, zipHigh, zipLow } from "./lanes";
import { ACCUMULATED, COEFFICIENTS, DOTS } from "./memory";

// 8 bytes of two rows, 16-bit words side by side.
@inline
function words(rows: usize, stride: usize): v128 {
  return v128.shuffle<i16>(v128.load64_zero(rows), v128.load64_zero(rows + stride), 0, 8, 1, 9, 2, 10, 3, 11);
}

// The lower bytes of the words for bit 0, else the words from bit `shift` on.
@inline
function fromLower(word: v128, shift: i32): v128 {
  return shift == 0 ? v128.and(word, i16x8.splat(0xff)) : i16x8.shr_u(word, shift);
}

// The words from bit `shift` of their upper bytes on.
@inline
function fromUpper(word: v128, shift: i32): v128 {
  return i16x8.shr_u(word, 8 + shift);
}

@inline
function dot(codes: v128, coefficients: usize, sum: v128): v128 {
  return i32x4.add(sum, i32x4.dot_i16x8_s(codes, v128.load32_splat(coefficients)));
}

// Sums over the rows' 8 bytes at `rows`, of their words from bit `shift` of both bytes on, for three or four heads.
@inline
function sumBytesWide(
  rows: usize,
  stride: usize,
  count: i32,
  fourth: bool,
  shift: i32,
  out: usize,
  headBytes: usize,
): void {
  let a = i32x4.splat(0);
  let b = a;
  let c = a;
  let d = a;
  let e = a;
  let f = a;
  let g = a;
  let h = a;
  let at: usize = COEFFICIENTS;
  for (const end = at + ((<usize>count) << 3); at < end; at += 16, rows += 2 * stride) {
    const word = words(rows, stride);
    const lower = fromLower(word, shift);
    const upper = fromUpper(word, shift);
    a = dot(lower, at, a);
    b = dot(upper, at, b);
    c = dot(lower, at + 4, c);
    d = dot(upper, at + 4, d);
    e = dot(lower, at + 8, e);
    f = dot(upper, at + 8, f);
    if (fourth) {
      g = dot(lower, at + 12, g);
      h = dot(upper, at + 12, h);
    }
  }
  v128.store(out, a);
  v128.store(out, b, 16);
  v128.store(out + headBytes, c);
  v128.store(out + headBytes, d, 16);
  v128.store(out + 2 * headBytes, e);
  v128.store(out + 2 * headBytes, f, 16);
  if (fourth) {
    v128.store(out + 3 * headBytes, g);
    v128.store(out + 3 * headBytes, h, 16);
  }
}

// The same for one or two heads, from bit `shift` on and, unless `single`, from bit `next` on.
@inline
function sumBytesNarrow(
  rows: usize,
  stride: usize,
  count: i32,
  second: bool,
  shift: i32,
  next: i32,
  single: bool,
  out: usize,
  headBytes: usize,
): void {
  let a = i32x4.splat(0);
  let b = a;
  let c = a;
  let d = a;
  let e = a;
  let f = a;
  let g = a;
  let h = a;
  let at: usize = COEFFICIENTS;
  for (const end = at + ((<usize>count) << 3); at < end; at += 16, rows += 2 * stride) {
    const word = words(rows, stride);
    const lower = fromLower(word, shift);
    const upper = fromUpper(word, shift);
    a = dot(lower, at, a);
    b = dot(upper, at, b);
    if (second) {
      e = dot(lower, at + 4, e);
      f = dot(upper, at + 4, f);
    }
    if (!single) {
      const nextLower = fromLower(word, next);
      const nextUpper = fromUpper(word, next);
      c = dot(nextLower, at, c);
      d = dot(nextUpper, at, d);
      if (second) {
        g = dot(nextLower, at + 4, g);
        h = dot(nextUpper, at + 4, h);
      }
    }
  }
  v128.store(out, a);
  v128.store(out, b, 16);
  if (second) {
    v128.store(out + headBytes, e);
    v128.store(out + headBytes, f, 16);
  }
  if (!single) {
    v128.store(out, c, 32);
    v128.store(out, d, 48);
    if (second) {
      v128.store(out + headBytes, g, 32);
      v128.store(out + headBytes, h, 48);
    }
  }
}

// Rows of packed codes with one to four heads: blocks of 8 bytes of each row, and for each the passes that its width
// needs.
@inline
function sumBlocks(codes: usize, rows: i32, columns: i32, bits: i32, heads: i32): void {
  const stride = (<usize>columns * bits) >> 3;
  const headBytes = headStride(columns, bits);
  let out: usize = ACCUMULATED;
  for (const end = codes + stride; codes < end; codes += 8, out += blockBytes(bits)) {
    if (heads > 2) {
      const fourth = heads == 4;
      sumBytesWide(codes, stride, rows, fourth, 0, out, headBytes);
      if (bits == 4) {
        sumBytesWide(codes, stride, rows, fourth, 4, out + 32, headBytes);
      } else if (bits == 2) {
        sumBytesWide(codes, stride, rows, fourth, 2, out + 32, headBytes);
        sumBytesWide(codes, stride, rows, fourth, 4, out + 64, headBytes);
        sumBytesWide(codes, stride, rows, fourth, 6, out + 96, headBytes);
      }
    } else {
      const second = heads == 2;
      if (bits == 8) {
        sumBytesNarrow(codes, stride, rows, second, 0, 0, true, out, headBytes);
      } else if (bits == 4) {
        sumBytesNarrow(codes, stride, rows, second, 0, 4, false, out, headBytes);
      } else {
        sumBytesNarrow(codes, stride, rows, second, 0, 2, false, out, headBytes);
        sumBytesNarrow(codes, stride, rows, second, 4, 6, false, out + 64, headBytes);
      }
    }
  }
}

// Bytes of the accumulators of a block: one vector for each field of a 16-bit word.
@inline
function blockBytes(bits: i32): usize {
  return (<usize>(16 / bits)) << 4;
}

// Distance in bytes from one head's accumulators, and sums, to the next's.
@inline
function headStride(columns: i32, bits: i32): usize {
  return ((((<usize>columns * bits) >> 3) + 7) / 8) * blockBytes(bits);
}

// One function for each number of heads and width: engines keep sums in registers in small functions only.
function sum4Heads2Bits(codes: usize, rows: i32, columns: i32): void {
  sumBlocks(codes, rows, columns, 2, 4);
}
function sum3Heads2Bits(codes: usize, rows: i32, columns: i32): void {
  sumBlocks(codes, rows, columns, 2, 3);
}
function sum2Heads2Bits(codes: usize, rows: i32, columns: i32): void {
  sumBlocks(codes, rows, columns, 2, 2);
}
function sum1Head2Bits(codes: usize, rows: i32, columns: i32): void {
  sumBlocks(codes, rows, columns, 2, 1);
}
function sum4Heads4Bits(codes: usize, rows: i32, columns: i32): void {
  sumBlocks(codes, rows, columns, 4, 4);
}
function sum3Heads4Bits(codes: usize, rows: i32, columns: i32): void {
  sumBlocks(codes, rows, columns, 4, 3);
}
function sum2Heads4Bits(codes: usize, rows: i32, columns: i32): void {
  sumBlocks(codes, rows, columns, 4, 2);
}
function sum1Head4Bits(codes: usize, rows: i32, columns: i32): void {
  sumBlocks(codes, rows, columns, 4, 1);
}
function sum4Heads8Bits(codes: usize, rows: i32, columns: i32): void {
  sumBlocks(codes, rows, columns, 8, 4);
}
function sum3Heads8Bits(codes: usize, rows: i32, columns: i32): void {
  sumBlocks(codes, rows, columns, 8, 3);
}
function sum2Heads8Bits(codes: usize, rows: i32, columns: i32): void {
  sumBlocks(codes, rows, columns, 8, 2);
}
function sum1Head8Bits(codes: usize, rows: i32, columns: i32): void {
  sumBlocks(codes, rows, columns, 8, 1);
}

// Codes of 2, 4 or 8 bits, `[rows, columns]`, against pairs of i16 coefficients in COEFFICIENTS,
// `[rows / 2, 4, 2]`: sums as f32 in DOTS, `[heads, columns rounded up to whole blocks of 8 bytes]`. The caller
// keeps the coefficients so small that the sums of up to `255 * coefficient` fit 32 bits. Reads up to 8 bytes past the
// end. Returns the distance in bytes from one head's sums to the next's.
//
// Inline, so that each of the functions has more than one caller: those with a single one are merged into it.
@inline
export function sumCodes(codes: usize, rows: i32, columns: i32, bits: i32, heads: i32): usize {
  if (bits == 2) {
    if (heads == 4) sum4Heads2Bits(codes, rows, columns);
    else if (heads == 3) sum3Heads2Bits(codes, rows, columns);
    else if (heads == 2) sum2Heads2Bits(codes, rows, columns);
    else sum1Head2Bits(codes, rows, columns);
  } else if (bits == 4) {
    if (heads == 4) sum4Heads4Bits(codes, rows, columns);
    else if (heads == 3) sum3Heads4Bits(codes, rows, columns);
    else if (heads == 2) sum2Heads4Bits(codes, rows, columns);
    else sum1Head4Bits(codes, rows, columns);
  } else {
    if (heads == 4) sum4Heads8Bits(codes, rows, columns);
    else if (heads == 3) sum3Heads8Bits(codes, rows, columns);
    else if (heads == 2) sum2Heads8Bits(codes, rows, columns);
    else sum1Head8Bits(codes, rows, columns);
  }
  const stride = headStride(columns, bits);
  orderSums(<i32>((stride * heads) / blockBytes(bits)), bits);
  return stride;
}

// The sums at `at` less those at `higher`, which count `1 << bits` each.
@inline
function less(at: v128, higher: v128, bits: i32): v128 {
  return i32x4.sub(at, i32x4.shl(higher, bits));
}

// ACCUMULATED to DOTS. For each word: sums of its lower byte, of the word from bit 8 on, and of the word from the bits of
// the next fields on, those in the lower byte and those in the upper one in turn. Their four lanes belong to four words.
// Sums of more than a byte may wrap; what is left of them does not.
function orderSums(blocks: i32, bits: i32): void {
  let at: usize = ACCUMULATED;
  let out: usize = DOTS;
  if (bits == 8) {
    for (let i = 0; i < blocks; i++, at += 32, out += 32) {
      const lower = f32x4.convert_i32x4_s(v128.load(at));
      const upper = f32x4.convert_i32x4_s(v128.load(at, 16));
      v128.store(out, zipLow(lower, upper));
      v128.store(out, zipHigh(lower, upper), 16);
    }
  } else if (bits == 4) {
    for (let i = 0; i < blocks; i++, at += 64, out += 64) {
      const from8 = v128.load(at, 16);
      const from12 = v128.load(at, 48);
      const second = less(v128.load(at, 32), from8, 4);
      storeTransposed(
        f32x4.convert_i32x4_s(less(v128.load(at), second, 4)),
        f32x4.convert_i32x4_s(second),
        f32x4.convert_i32x4_s(less(from8, from12, 4)),
        f32x4.convert_i32x4_s(from12),
        out,
        16,
      );
    }
  } else {
    for (let i = 0; i < blocks; i++, at += 128, out += 128) {
      const from2 = v128.load(at, 32);
      const from4 = v128.load(at, 64);
      const from6 = v128.load(at, 96);
      const from8 = v128.load(at, 16);
      const from10 = v128.load(at, 48);
      const from12 = v128.load(at, 80);
      const from14 = v128.load(at, 112);
      storeTransposed(
        f32x4.convert_i32x4_s(less(v128.load(at), less(from2, from8, 6), 2)),
        f32x4.convert_i32x4_s(less(from2, from4, 2)),
        f32x4.convert_i32x4_s(less(from4, from6, 2)),
        f32x4.convert_i32x4_s(less(from6, from8, 2)),
        out,
        32,
      );
      storeTransposed(
        f32x4.convert_i32x4_s(less(from8, from10, 2)),
        f32x4.convert_i32x4_s(less(from10, from12, 2)),
        f32x4.convert_i32x4_s(less(from12, from14, 2)),
        f32x4.convert_i32x4_s(from14),
        out + 16,
        32,
      );
    }
  }
}
