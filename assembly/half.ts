// Binary16 in vectors. Everything stored is finite, so infinities and NaN need no care on the way back to f32.

import { held } from "./lanes";

// Largest finite binary16.
export const HALF_MAX: f32 = 65504;

// Four binary16 at `ptr`, as f32. The magnitude's bits, moved to an f32's place, are the value short of 2^112,
// subnormals included.
@inline
export function loadHalf4(ptr: usize, offset: usize = 0): v128 {
  const bits = i32x4.shl(v128.load16x4_s(ptr + offset), 13);
  return f32x4.mul(
    v128.and(bits, i32x4.splat(0x8fffe000)),
    f32x4.splat(5192296858534827628530496329220096.0),
  );
}

// Rounds `count` f32 (a multiple of 8) to the nearest binary16 (ties to even) at `target`; true when all of them are finite
// there. Added to a power of two 13 places above its own, or above 2^-14 if that is more, a number is rounded to as many
// places as binary16 has there, and counts them in its lowest bits.
export function storeHalves(source: usize, target: usize, count: i32): bool {
  const magnitudeMask = held(0, i32x4.splat(0x7fffffff));
  const exponentMask = held(1, i32x4.splat(0x7f800000));
  const leastExponent = held(2, i32x4.splat((127 - 14) << 23));
  const places = held(3, i32x4.splat(13 << 23));
  // The first place of a normal number counts for its exponent, too.
  const offset = held(4, i32x4.splat((13 << 23) + (113 << 10)));
  const signMask = held(5, i16x8.splat(-0x8000));
  let most = i32x4.splat(0);
  for (const end = source + ((<usize>count) << 2); source < end; source += 32, target += 16) {
    const a = v128.load(source);
    const b = v128.load(source, 16);
    const aMagnitude = v128.and(a, magnitudeMask);
    const bMagnitude = v128.and(b, magnitudeMask);
    // As integers: infinity and NaN are the largest.
    most = i32x4.max_s(most, i32x4.max_s(aMagnitude, bMagnitude));
    const aExponent = i32x4.max_s(v128.and(a, exponentMask), leastExponent);
    const bExponent = i32x4.max_s(v128.and(b, exponentMask), leastExponent);
    const aPlaces = f32x4.add(aMagnitude, i32x4.add(aExponent, places));
    const bPlaces = f32x4.add(bMagnitude, i32x4.add(bExponent, places));
    const aHalf = i32x4.add(i32x4.sub(aPlaces, offset), i32x4.sub(i32x4.shr_u(aExponent, 13), aExponent));
    const bHalf = i32x4.add(i32x4.sub(bPlaces, offset), i32x4.sub(i32x4.shr_u(bExponent, 13), bExponent));
    // What has the sign bit set becomes the least i16.
    const signs = v128.and(i16x8.narrow_i32x4_s(a, b), signMask);
    v128.store(target, v128.or(i16x8.narrow_i32x4_u(aHalf, bHalf), signs));
  }
  // 65520 and beyond round to infinity.
  return !v128.any_true(i32x4.ge_s(most, f32x4.splat(65520)));
}

// The nearest binary16 (ties to even) of a number below 65520, as f32.
export function roundHalf(x: f32): f32 {
  const exponent = max(reinterpret<i32>(x) & 0x7f800000, (127 - 14) << 23);
  const power = reinterpret<f32>(exponent + ((13 << 23) | (1 << 22)));
  return power + x - power;
}

// `count` binary16 (a multiple of 4) to f32.
export function loadHalves(source: usize, target: usize, count: i32): void {
  for (const end = source + ((<usize>count) << 1); source < end; source += 8, target += 16) {
    v128.store(target, loadHalf4(source));
  }
}
