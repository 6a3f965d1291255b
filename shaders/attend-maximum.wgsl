// A running maximum of scores that the invocations of a workgroup share.

// The maximum is raised only when a score exceeds it by so much: weights up to e^16 are as good as those up
// to 1.
const SLACK: f32 = 16.0;
// A position that no row sees.
const HIDDEN_FROM: u32 = 0x7fffffffu;

// A number for each f32, in their order, and back. No score has 0, which stands for none.
fn orderOf(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  return bits ^ select(0x80000000u, 0xffffffffu, bits >= 0x80000000u);
}

fn valueOf(order: u32) -> f32 {
  let bits = order ^ select(0xffffffffu, 0x80000000u, order >= 0x80000000u);
  return select(bitcast<f32>(bits), HIDDEN, order == 0u);
}
