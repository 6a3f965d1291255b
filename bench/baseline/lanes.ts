// Small operations on f32 lanes.

// a + b * c
@inline
export function mulAdd(a: v128, b: v128, c: v128): v128 {
  return f32x4.add(a, f32x4.mul(b, c));
}

// Sums of the lanes of a, b, c and d, one in each lane.
@inline
export function sums(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.add(v128.shuffle<f32>(a, b, 0, 4, 1, 5), v128.shuffle<f32>(a, b, 2, 6, 3, 7));
  const cd = f32x4.add(v128.shuffle<f32>(c, d, 0, 4, 1, 5), v128.shuffle<f32>(c, d, 2, 6, 3, 7));
  return f32x4.add(v128.shuffle<f32>(ab, cd, 0, 1, 4, 5), v128.shuffle<f32>(ab, cd, 2, 3, 6, 7));
}

@inline
export function sum(a: v128): f32 {
  return f32x4.extract_lane(sums(a, a, a, a), 0);
}

@inline
export function largest(a: v128): f32 {
  const pairs = f32x4.pmax(a, v128.shuffle<f32>(a, a, 2, 3, 0, 1));
  return f32x4.extract_lane(f32x4.pmax(pairs, v128.shuffle<f32>(pairs, pairs, 1, 0, 3, 2)), 0);
}

// 2^x for x <= 0, to 1e-7 relative; below -100 it is 2^-100, which adds nothing to a softmax and, unlike smaller
// numbers, makes no denormal (and slow) products. Adding `round`, 1.5 * 2^23, rounds to the nearest integer n, which is then
// in the low bits; the rest of the arguments are the polynomial of least relative error for 2^r, |r| <= 1/2.
@inline
function power(
  x: v128,
  least: v128,
  round: v128,
  c0: v128,
  c1: v128,
  c2: v128,
  c3: v128,
  c4: v128,
  c5: v128,
): v128 {
  x = f32x4.pmax(least, x);
  const n = f32x4.add(x, round);
  const r = f32x4.sub(x, f32x4.sub(n, round));
  let p = mulAdd(c4, r, c5);
  p = mulAdd(c3, r, p);
  p = mulAdd(c2, r, p);
  p = mulAdd(c1, r, p);
  p = mulAdd(c0, r, p);
  return i32x4.add(p, i32x4.shl(n, 23));
}

const LEAST: f32 = -100;
const ROUND: f32 = 12582912;
const C0: f32 = 1.000000072;
const C1: f32 = 6.931469671e-1;
const C2: f32 = 2.402211972e-1;
const C3: f32 = 5.550713274e-2;
const C4: f32 = 9.675541334e-3;
const C5: f32 = 1.327647198e-3;

@inline
export function exp2(x: v128): v128 {
  return power(
    x,
    f32x4.splat(LEAST),
    f32x4.splat(ROUND),
    f32x4.splat(C0),
    f32x4.splat(C1),
    f32x4.splat(C2),
    f32x4.splat(C3),
    f32x4.splat(C4),
    f32x4.splat(C5),
  );
}

// The same numbers, to be loaded: engines keep what is loaded before a loop in registers, and make written constants anew
// in every round.
const constants = memory.data(8 * 16, 16);

export function prepareExp2(): void {
  v128.store(constants, f32x4.splat(LEAST));
  v128.store(constants, f32x4.splat(ROUND), 16);
  v128.store(constants, f32x4.splat(C0), 32);
  v128.store(constants, f32x4.splat(C1), 48);
  v128.store(constants, f32x4.splat(C2), 64);
  v128.store(constants, f32x4.splat(C3), 80);
  v128.store(constants, f32x4.splat(C4), 96);
  v128.store(constants, f32x4.splat(C5), 112);
}

// Makes 2^(x - origin) of all x from one address to another, a multiple of 16; returns their sums by lanes. After
// `prepareExp2`.
export function exp2All(x: usize, end: usize, origin: f32): v128 {
  const shift = f32x4.splat(origin);
  const least = v128.load(constants);
  const round = v128.load(constants, 16);
  const c0 = v128.load(constants, 32);
  const c1 = v128.load(constants, 48);
  const c2 = v128.load(constants, 64);
  const c3 = v128.load(constants, 80);
  const c4 = v128.load(constants, 96);
  const c5 = v128.load(constants, 112);
  let total = f32x4.splat(0);
  for (; x < end; x += 64) {
    const a = power(f32x4.sub(v128.load(x), shift), least, round, c0, c1, c2, c3, c4, c5);
    const b = power(f32x4.sub(v128.load(x, 16), shift), least, round, c0, c1, c2, c3, c4, c5);
    v128.store(x, a);
    v128.store(x, b, 16);
    const c = power(f32x4.sub(v128.load(x, 32), shift), least, round, c0, c1, c2, c3, c4, c5);
    const d = power(f32x4.sub(v128.load(x, 48), shift), least, round, c0, c1, c2, c3, c4, c5);
    v128.store(x, c, 32);
    v128.store(x, d, 48);
    total = f32x4.add(total, f32x4.add(f32x4.add(a, b), f32x4.add(c, d)));
  }
  return total;
}
