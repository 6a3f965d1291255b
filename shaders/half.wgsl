// Binary16 on u32 words that hold two of them, the first in the low bits.

// The one that lies at `index` of an array of words.
fn halfOf(word: u32, index: u32) -> f32 {
  let both = unpack2x16float(word);
  return select(both.x, both.y, (index & 1u) == 1u);
}

// The bits of the binary16 nearest to x, ties to even; infinity from 65520 on. pack2x16float may round either way.
fn toHalf(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  let sign = (bits >> 16u) & 0x8000u;
  let magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x477ff000u) {
    return sign | select(0x7c00u, 0x7e00u, magnitude > 0x7f800000u);
  }
  if (magnitude < 0x38800000u) {
    // Below the normal range steps are 2^-24: in f32, those of the numbers from 0.5 to 1.
    return sign | (bitcast<u32>(bitcast<f32>(magnitude) + 0.5) & 0x7ffu);
  }
  // The lowest bit kept joins the rounding, so that a tie goes to the even one; 112 is the difference of the biases.
  return sign | ((magnitude - (112u << 23u) + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u);
}

fn packHalves(low: f32, high: f32) -> u32 {
  return toHalf(low) | (toHalf(high) << 16u);
}
