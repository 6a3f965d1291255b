// Rows of weights to f32. The types are those of GGUF, with its numbers. Blocks of 32 weights have a binary16 scale, with Q4_1
// also a binary16 minimum, then the codes. Of 4-bit codes a byte holds one of the block's first 16 weights in its low half and
// the one 16 further on in its high half; those of Q4_0 are 8 too large.

const F32 = 0;
const F16 = 1;
const Q4_0 = 2;
const Q4_1 = 3;
const Q8_0 = 8;

// `count` weights, a multiple of 32 where they come in blocks and of 4 elsewhere.
export function dequantize(type: i32, source: usize, target: usize, count: i32): void {
  const end = target + ((<usize>count) << 2);
  switch (type) {
    case F32:
      memory.copy(target, source, end - target);
      break;
    case F16:
      for (; target < end; target += 16, source += 8) v128.store(target, halves(source));
      break;
    case Q4_0:
      for (; target < end; target += 128, source += 18) {
        const scale = half(source);
        nibbles(source + 2, f32x4.splat(scale), f32x4.splat(-8 * scale), target);
      }
      break;
    case Q4_1:
      for (; target < end; target += 128, source += 20) {
        nibbles(source + 4, f32x4.splat(half(source)), f32x4.splat(half(source + 2)), target);
      }
      break;
    case Q8_0:
      for (; target < end; target += 128, source += 34) {
        const scale = f32x4.splat(half(source));
        const zero = f32x4.splat(0);
        bytes(v128.load(source, 2), scale, zero, target);
        bytes(v128.load(source, 18), scale, zero, target + 64);
      }
      break;
    default:
      unreachable();
  }
}

@inline
function nibbles(source: usize, scale: v128, zero: v128, target: usize): void {
  const codes = v128.load(source);
  bytes(v128.and(codes, i8x16.splat(15)), scale, zero, target);
  bytes(i8x16.shr_u(codes, 4), scale, zero, target + 64);
}

// 16 signed codes to code * scale + zero.
@inline
function bytes(codes: v128, scale: v128, zero: v128, target: usize): void {
  const low = i16x8.extend_low_i8x16_s(codes);
  const high = i16x8.extend_high_i8x16_s(codes);
  v128.store(target, apply(i32x4.extend_low_i16x8_s(low), scale, zero));
  v128.store(target, apply(i32x4.extend_high_i16x8_s(low), scale, zero), 16);
  v128.store(target, apply(i32x4.extend_low_i16x8_s(high), scale, zero), 32);
  v128.store(target, apply(i32x4.extend_high_i16x8_s(high), scale, zero), 48);
}

@inline
function apply(codes: v128, scale: v128, zero: v128): v128 {
  return f32x4.add(f32x4.mul(f32x4.convert_i32x4_s(codes), scale), zero);
}

// A finite binary16. Its exponent and fraction, put to where f32 has them, are off by the difference of the biases, 2^112.
@inline
function half(source: usize): f32 {
  const bits = <u32>load<u16>(source);
  const magnitude = reinterpret<f32>((bits & 0x7fff) << 13) * reinterpret<f32>(0x77800000);
  return reinterpret<f32>(reinterpret<u32>(magnitude) | ((bits & 0x8000) << 16));
}

// Four of them.
@inline
function halves(source: usize): v128 {
  const bits = i32x4.extend_low_i16x8_u(v128.load64_zero(source));
  const magnitude = i32x4.shl(v128.and(bits, i32x4.splat(0x7fff)), 13);
  const sign = i32x4.shl(v128.and(bits, i32x4.splat(0x8000)), 16);
  return v128.or(f32x4.mul(magnitude, f32x4.splat(reinterpret<f32>(0x77800000))), sign);
}
