// Codes of records as floats.
//
// A code becomes a float without a conversion: as the upper bits of the mantissa of a number from 1 to 2.

// 1 + code / 2^bits, for the code that begins at bit `at`.
fn fraction(codes: u32, at: u32, bits: u32) -> f32 {
  let to = 23u - bits;
  let mask = ((1u << bits) - 1u) << to;
  var moved = codes;
  if (at <= to) {
    moved <<= to - at;
  } else {
    moved >>= at - to;
  }
  return bitcast<f32>((moved & mask) | 0x3f800000u);
}

// The 32 bits that begin at bit `bit` after a word.
fn bitsAt(word: u32, bit: u32) -> u32 {
  let at = word + bit / 32u;
  let shift = bit % 32u;
  return (records[at] >> shift) | ((records[at + 1u] << 1u) << (31u - shift));
}

// Codes of K for one channel and eight tokens: all of them, or half. The channel is counted from that whose
// codes begin at `start`.
fn keyCodes(start: u32, channel: u32, eight: u32, word: u32) -> u32 {
  //# if KEY_BITS == 4 || KEY_BITS == 8
  return records[start + channel * KEY_ROW + eight * (KEY_BITS / 4u) + word];
  //# else
  //# if KEY_BITS == 2
  return records[start + channel * KEY_ROW + eight / 2u] >> (eight % 2u * 16u);
  //# else
  return bitsAt(start + channel * KEY_ROW, (eight * 8u + word * 4u) * KEY_BITS);
  //# end
  //# end
}

// Codes of V for one token, counted from `start`, and CHANNELS channels: all of them, or half.
fn valueCodes(start: u32, token: u32, column: u32, word: u32) -> u32 {
  //# if VALUE_BITS == 2 || VALUE_BITS == 4 || VALUE_BITS == 8
  return records[start + (token * COLUMNS + column) * (CHANNELS * VALUE_BITS / 32u) + word];
  //# else
  return bitsAt(start, ((token * COLUMNS + column) * CHANNELS + word * VALUE_CODES) * VALUE_BITS);
  //# end
}
