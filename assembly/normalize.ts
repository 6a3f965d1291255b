// Dual-scale variance normalization of the tile in QUADS. The balanced iterates are never stored: the spreads of their
// rows and columns come from one sweep over the tile an iteration, with the inverse scales applied. Scales are kept as
// such, not as logarithms: clipping them is the same there.

import { largest, madd, smallest, sums4 } from "./lanes";
import {
  BEST_COLUMN_SCALE,
  BEST_ROW_SCALE,
  CENTRES,
  COLUMN_INVERSE,
  COLUMN_SCALE,
  COLUMN_SHARES,
  COLUMN_SPREAD,
  COLUMN_SQUARES,
  COLUMN_SUM,
  DOUBTS,
  QUADS,
  VECTOR,
  ROW_INVERSE,
  ROW_SCALE,
  ROW_SHARES,
  ROW_SPREAD,
  STEP_LIMITS,
  STEPPED,
} from "./memory";
import { fill } from "./vectors";

const LEAST_STEP: f32 = 1e-3;
const MOST_STEP: f32 = 1e3;
const LEAST_SCALE: f32 = 0.7408182206817179; // e^-0.3
const MOST_SCALE: f32 = 22026.465794806718; // e^10
// Iterates whose imbalances differ by less than this factor tie: what differs there is rounding.
const TIE: f32 = 1 + 2e-6;

// Sums of elements and of their squares tell a spread as deviations from a mean do, but for digits that cancel: what is
// rounded off the squares counts `squares / deviations` times, 1 + (mean / spread)^2. Rows are summed in four lanes, which
// leaves about 3e-8 of the sums; of columns there is one sum of up to 128 additions, and several times that. Up to these
// factors, means of 8 and of 1.7 spreads, scales come out within 2e-6, as with centres: a tie. Beyond them, in any row or
// column of any iterate, the tile is done again with centres.
const MOST_ROW_CANCELLATION: f32 = 64;
const MOST_COLUMN_CANCELLATION: f32 = 4;

// For the sums of n numbers: 1 / n and 1 / (n - 1). In memory, as divisions before a loop, or in one, take their time.
function storeShares(target: usize, n: i32): void {
  store<f32>(target, 1 / <f32>n);
  store<f32>(target, 1 / <f32>(n - 1), 4);
}

function storeSteps(least: f32, most: f32): void {
  store<f32>(STEP_LIMITS, least);
  store<f32>(STEP_LIMITS, most, 4);
}

// The squared deviations from the mean of numbers, from their sums and those of their squares.
@inline
function deviations(sums: v128, squares: v128, shares: usize): v128 {
  return f32x4.sub(squares, f32x4.mul(f32x4.mul(sums, sums), v128.load32_splat(shares)));
}

// Unbiased standard deviation.
@inline
function spreadOf(deviations: v128, shares: usize): v128 {
  const variance = f32x4.mul(deviations, v128.load32_splat(shares, 4));
  return f32x4.sqrt(f32x4.pmax(f32x4.splat(0), variance));
}

@inline
function clip(x: v128, least: v128, most: v128): v128 {
  return f32x4.pmin(most, f32x4.pmax(least, x));
}

// Adds lanes to those that are noted at `target`.
@inline
function note(target: usize, lanes: v128): void {
  v128.store(target, v128.or(v128.load(target), lanes));
}

// Lanes in which too much cancelled.
@inline
function cancelled(squares: v128, deviations: v128, most: f32): v128 {
  return v128.not(f32x4.le(squares, f32x4.mul(deviations, f32x4.splat(most))));
}

// Four scales, from the spreads without them: `spread / scale` is what the method takes into the scale, within limits.
@inline
function nextScale(scale: v128, spread: v128): v128 {
  const least = f32x4.mul(scale, v128.load32_splat(STEP_LIMITS));
  const most = f32x4.mul(scale, v128.load32_splat(STEP_LIMITS, 4));
  return clipScale(clip(spread, least, most));
}

@inline
function clipScale(x: v128): v128 {
  return clip(x, f32x4.splat(LEAST_SCALE), f32x4.splat(MOST_SCALE));
}

@inline
function storeRows(at: usize, spread: v128): void {
  const next = nextScale(v128.load(ROW_SCALE + at), spread);
  note(STEPPED, f32x4.ne(next, clipScale(spread)));
  v128.store(ROW_SCALE + at, next);
  v128.store(ROW_INVERSE + at, f32x4.div(f32x4.splat(1), next));
  v128.store(ROW_SPREAD + at, spread);
}

// The four rows of `quad`, number `at / 4` and on, divided by COLUMN_SCALE: takes their spreads into ROW_SCALE.
function sweepRows(quad: usize, at: usize, columns: i32): void {
  let a = f32x4.splat(0);
  let b = a;
  let c = a;
  let d = a;
  let aa = a;
  let bb = a;
  let cc = a;
  let dd = a;
  for (
    let i: usize = COLUMN_INVERSE, end: usize = i + ((<usize>columns) << 2);
    i < end;
    i += 16, quad += 64
  ) {
    const inverse = v128.load(i);
    const w = f32x4.mul(v128.load(quad), inverse);
    a = f32x4.add(a, w);
    aa = madd(w, w, aa);
    const x = f32x4.mul(v128.load(quad, 16), inverse);
    b = f32x4.add(b, x);
    bb = madd(x, x, bb);
    const y = f32x4.mul(v128.load(quad, 32), inverse);
    c = f32x4.add(c, y);
    cc = madd(y, y, cc);
    const z = f32x4.mul(v128.load(quad, 48), inverse);
    d = f32x4.add(d, z);
    dd = madd(z, z, dd);
  }
  const squares = sums4(aa, bb, cc, dd);
  const deviation = deviations(sums4(a, b, c, d), squares, ROW_SHARES);
  note(DOUBTS, cancelled(squares, deviation, MOST_ROW_CANCELLATION));
  storeRows(at, spreadOf(deviation, ROW_SHARES));
}

// Adds the four rows of `quad`, number `at / 4` and on, divided by ROW_SCALE, to COLUMN_SUM and COLUMN_SQUARES.
function sweepColumns(quad: usize, at: usize, columns: i32): void {
  const a = v128.load32_splat(ROW_INVERSE + at);
  const b = v128.load32_splat(ROW_INVERSE + at, 4);
  const c = v128.load32_splat(ROW_INVERSE + at, 8);
  const d = v128.load32_splat(ROW_INVERSE + at, 12);
  for (let i: usize = COLUMN_SUM, end: usize = i + ((<usize>columns) << 2); i < end; i += 16, quad += 64) {
    const w = f32x4.mul(v128.load(quad), a);
    const x = f32x4.mul(v128.load(quad, 16), b);
    const y = f32x4.mul(v128.load(quad, 32), c);
    const z = f32x4.mul(v128.load(quad, 48), d);
    const sum = f32x4.add(f32x4.add(w, x), f32x4.add(y, z));
    const squares = f32x4.add(madd(w, w, f32x4.mul(x, x)), madd(y, y, f32x4.mul(z, z)));
    v128.store(i, f32x4.add(v128.load(i), sum));
    // COLUMN_SQUARES lie there.
    v128.store(i, f32x4.add(v128.load(i, VECTOR), squares), VECTOR);
  }
}

// One sweep: the spreads of rows and new scales from them, and with these, the spreads of columns.
function sweep(rows: i32, columns: i32): void {
  const quadBytes = (<usize>columns) << 4;
  const last = ((<usize>rows) << 2) - 16;
  let quad = QUADS;
  fill(COLUMN_SUM, columns, 0);
  fill(COLUMN_SQUARES, columns, 0);
  // Rows are one quad ahead, so that nothing waits for their scales, a long chain of operations.
  sweepRows(quad, 0, columns);
  for (let at: usize = 0; at < last; at += 16, quad += quadBytes) {
    sweepRows(quad + quadBytes, at + 16, columns);
    sweepColumns(quad, at, columns);
  }
  sweepColumns(quad, last, columns);
  let doubts = i32x4.splat(0);
  for (let at: usize = 0; at < (<usize>columns) << 2; at += 16) {
    const squares = v128.load(COLUMN_SQUARES + at);
    const deviation = deviations(v128.load(COLUMN_SUM + at), squares, COLUMN_SHARES);
    doubts = v128.or(doubts, cancelled(squares, deviation, MOST_COLUMN_CANCELLATION));
    v128.store(COLUMN_SPREAD + at, spreadOf(deviation, COLUMN_SHARES));
  }
  note(DOUBTS, doubts);
}

// With centres: sums of deviations from the mean of 8 elements, as scaled now, and of their squares. That is near enough,
// wherever offsets and scales lie.

// The four rows of `quad`.
@inline
function rowCentres(quad: usize, columns: i32): v128 {
  const half = (<usize>columns) << 1;
  const first = v128.load(COLUMN_INVERSE);
  const second = v128.load(COLUMN_INVERSE + half);
  return f32x4.mul(
    sums4(
      sample(quad, half, first, second),
      sample(quad + 16, half, first, second),
      sample(quad + 32, half, first, second),
      sample(quad + 48, half, first, second),
    ),
    f32x4.splat(-0.125),
  );
}

@inline
function sample(row: usize, half: usize, first: v128, second: v128): v128 {
  return f32x4.add(f32x4.mul(v128.load(row), first), f32x4.mul(v128.load(row + (half << 2)), second));
}

// The four columns from `column` on.
@inline
function columnCentres(column: usize, rows: i32, columns: i32): v128 {
  const step = (<usize>rows) >> 3;
  let total = f32x4.splat(0);
  for (let i: usize = 0; i < <usize>rows; i += step) {
    const at = column + (i >> 2) * ((<usize>columns) << 4) + ((i & 3) << 4);
    total = f32x4.add(total, f32x4.mul(v128.load(at), v128.load32_splat(ROW_INVERSE + (i << 2))));
  }
  return f32x4.mul(total, f32x4.splat(-0.125));
}

// How many rows or columns are taken at once, and centres loaded rather than computed before the loop, is what keeps
// sums and centres in registers in every engine measured.

// As `sweepRows`.
function sweepCentredRows(quad: usize, at: usize, columns: i32): void {
  v128.store(CENTRES, rowCentres(quad, columns));
  const aCentre = v128.load32_splat(CENTRES);
  const bCentre = v128.load32_splat(CENTRES, 4);
  const cCentre = v128.load32_splat(CENTRES, 8);
  const dCentre = v128.load32_splat(CENTRES, 12);
  let a = f32x4.splat(0);
  let b = a;
  let c = a;
  let d = a;
  let aa = a;
  let bb = a;
  let cc = a;
  let dd = a;
  for (
    let i: usize = COLUMN_INVERSE, end: usize = i + ((<usize>columns) << 2);
    i < end;
    i += 16, quad += 64
  ) {
    const inverse = v128.load(i);
    const w = madd(v128.load(quad), inverse, aCentre);
    a = f32x4.add(a, w);
    aa = madd(w, w, aa);
    const x = madd(v128.load(quad, 16), inverse, bCentre);
    b = f32x4.add(b, x);
    bb = madd(x, x, bb);
    const y = madd(v128.load(quad, 32), inverse, cCentre);
    c = f32x4.add(c, y);
    cc = madd(y, y, cc);
    const z = madd(v128.load(quad, 48), inverse, dCentre);
    d = f32x4.add(d, z);
    dd = madd(z, z, dd);
  }
  const deviation = deviations(sums4(a, b, c, d), sums4(aa, bb, cc, dd), ROW_SHARES);
  storeRows(at, spreadOf(deviation, ROW_SHARES));
}

// The spreads of the eight columns from `column` on.
function sweepCentredColumns(column: usize, at: usize, rows: i32, columns: i32): void {
  const quadBytes = (<usize>columns) << 4;
  v128.store(CENTRES, columnCentres(column, rows, columns));
  v128.store(CENTRES, columnCentres(column + 64, rows, columns), 16);
  const aCentre = v128.load(CENTRES);
  const bCentre = v128.load(CENTRES, 16);
  // Even and odd rows apart: with one sum for both, the next addition would wait for the last.
  let a = f32x4.splat(0);
  let b = a;
  let c = a;
  let d = a;
  let aa = a;
  let bb = a;
  let cc = a;
  let dd = a;
  // Two rows of a quad, then the other two.
  let next: usize = 32;
  const other = quadBytes - next;
  for (let i: usize = ROW_INVERSE, end: usize = i + ((<usize>rows) << 2); i < end; i += 8) {
    const even = v128.load32_splat(i);
    const w = madd(v128.load(column), even, aCentre);
    a = f32x4.add(a, w);
    aa = madd(w, w, aa);
    const x = madd(v128.load(column, 64), even, bCentre);
    b = f32x4.add(b, x);
    bb = madd(x, x, bb);
    const odd = v128.load32_splat(i, 4);
    const y = madd(v128.load(column, 16), odd, aCentre);
    c = f32x4.add(c, y);
    cc = madd(y, y, cc);
    const z = madd(v128.load(column, 80), odd, bCentre);
    d = f32x4.add(d, z);
    dd = madd(z, z, dd);
    column += next;
    next = quadBytes - next;
  }
  const first = deviations(f32x4.add(a, c), f32x4.add(aa, cc), COLUMN_SHARES);
  const second = deviations(f32x4.add(b, d), f32x4.add(bb, dd), COLUMN_SHARES);
  v128.store(COLUMN_SPREAD + at, spreadOf(first, COLUMN_SHARES));
  v128.store(COLUMN_SPREAD + at, spreadOf(second, COLUMN_SHARES), 16);
}

// As `sweep`.
function sweepCentred(rows: i32, columns: i32): void {
  const quadBytes = (<usize>columns) << 4;
  let quad = QUADS;
  for (let at: usize = 0; at < (<usize>rows) << 2; at += 16, quad += quadBytes) {
    sweepCentredRows(quad, at, columns);
  }
  for (let at: usize = 0; at < (<usize>columns) << 2; at += 32) {
    sweepCentredColumns(QUADS + (at << 2), at, rows, columns);
  }
}

// Takes COLUMN_SPREAD into COLUMN_SCALE; false when no scale changed.
function scaleColumns(columns: i32): bool {
  let changed = i32x4.splat(0);
  for (let at: usize = 0; at < (<usize>columns) << 2; at += 16) {
    const old = v128.load(COLUMN_SCALE + at);
    const next = nextScale(old, v128.load(COLUMN_SPREAD + at));
    changed = v128.or(changed, v128.xor(old, next));
    v128.store(COLUMN_SCALE + at, next);
    v128.store(COLUMN_INVERSE + at, f32x4.div(f32x4.splat(1), next));
  }
  return v128.any_true(changed);
}

// Ratio of the largest spread, divided by its scale, to the smallest.
function imbalance(spread: usize, inverse: usize, count: i32): f32 {
  let most = f32x4.splat(0);
  let least = f32x4.splat(Infinity);
  for (const end = spread + ((<usize>count) << 2); spread < end; spread += 16, inverse += 16) {
    const x = f32x4.mul(v128.load(spread), v128.load(inverse));
    most = f32x4.pmax(most, x);
    least = f32x4.pmin(least, x);
  }
  return largest(most) / max(smallest(least), <f32>1e-8);
}

// Finds the scales of the most balanced iterate; false when that takes centres.
function balance(rows: i32, columns: i32, iterations: i32, centred: bool): bool {
  fill(ROW_SCALE, rows, 1);
  fill(COLUMN_SCALE, columns, 1);
  fill(COLUMN_INVERSE, columns, 1);
  v128.store(DOUBTS, i32x4.splat(0));
  storeShares(ROW_SHARES, columns);
  storeShares(COLUMN_SHARES, rows);
  // Steps by a factor of 1 leave scales as they are.
  storeSteps(1, 1);
  let best: f32 = Infinity;
  // Once more than there are iterations, as the tile as it is counts, too.
  for (let i = 0; i <= iterations; i++) {
    if (i > 0) storeSteps(LEAST_STEP, MOST_STEP);
    if (i > 0 && !scaleColumns(columns) && !v128.any_true(v128.load(STEPPED))) break;
    v128.store(STEPPED, i32x4.splat(0));
    if (centred) sweepCentred(rows, columns);
    else sweep(rows, columns);
    if (v128.any_true(v128.load(DOUBTS))) return false;
    const now = imbalance(COLUMN_SPREAD, COLUMN_INVERSE, columns) + imbalance(ROW_SPREAD, ROW_INVERSE, rows);
    if (now <= best * TIE) {
      best = now;
      memory.copy(BEST_ROW_SCALE, ROW_SCALE, (<usize>rows) << 2);
      memory.copy(BEST_COLUMN_SCALE, COLUMN_SCALE, (<usize>columns) << 2);
    }
  }
  return true;
}

// Finds the scales of the tile `[rows, columns]` in QUADS: BEST_ROW_SCALE and BEST_COLUMN_SCALE are those of the most
// balanced iterate, the later one among equals.
export function normalizeTile(rows: i32, columns: i32, iterations: i32): void {
  fill(BEST_ROW_SCALE, rows, 1);
  fill(BEST_COLUMN_SCALE, columns, 1);
  if (iterations > 0 && !balance(rows, columns, iterations, false)) balance(rows, columns, iterations, true);
}
