// Codes of `bits` bits in a little-endian stream of words that begins at `start`; `word` reads one of them.
fn codeAt(start: u32, index: u32, bits: u32) -> u32 {
  let position = index * bits;
  let at = start + position / 32u;
  let shift = position % 32u;
  var code = word(at) >> shift;
  if (shift + bits > 32u) {
    code |= word(at + 1u) << (32u - shift);
  }
  return code & ((1u << bits) - 1u);
}
