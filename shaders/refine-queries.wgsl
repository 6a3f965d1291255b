// For `refine.wgsl`: each channel of K, from the last on, makes up for the errors of those before it as far as queries see
// both. Channels go by eights: what they owe to those before is found for all eight at once, each invocation for its own tokens.

// Of each KV head, `[later channel][channel]`: how much of the later one's error a channel makes up for; see
// `factor-queries.wgsl`.
@group(0) @binding(4) var<storage, read> factors: array<vec4f>;
// Of each tile and KV head, `[channel][token]`.
@group(0) @binding(5) var<storage, read_write> errors: array<vec4f>;

override EIGHT: u32 = COLUMNS * 2u;

// `[channel of the eight][token]`: what is to be rounded, but for what is owed to later ones of the eight; then their errors.
var<workgroup> eight: array<vec4f, EIGHT>;

// Where those of the KV head, and of the tile, begin.
var<private> factor: u32;
var<private> tileErrors: u32;

fn openFactor(job: u32) {
  factor = job % params.kvHeads * (ROWS * ROWS / 4u);
  tileErrors = job * ROWS * FOURS + lane;
}

// Begins with the eight channels from `first` on.
fn openChannels(first: u32) {
  //# for r in 0..8
  var owed_r = vec4f(0.0);
  //# end
  for (var later = first + 8u; later < ROWS; later++) {
    let error = errors[tileErrors + later * FOURS];
    let at = factor + (later * ROWS + first) / 4u;
    //# for f in 0..2
    let shares_f = factors[at + $f];
    //# for r in 4 * $f..4 * $f + 4
    owed_r += error * shares_f[$r % 4];
    //# end
    //# end
  }
  //# for r in 0..8
  eight[$r * FOURS + lane] = exactAt(first + $r) - owed_r;
  //# end
}

fn correctChannel(channel: u32) -> vec4f {
  let own = channel % 8u;
  if (own == 7u) {
    openChannels(channel - 7u);
  }
  var value = eight[own * FOURS + lane];
  for (var later = own + 1u; later < 8u; later++) {
    let at = (channel - own + later) * ROWS + channel;
    value -= factors[factor + at / 4u][at % 4u] * eight[later * FOURS + lane];
  }
  return value;
}

fn noteChannel(channel: u32, error: vec4f) {
  eight[(channel % 8u) * FOURS + lane] = error;
  errors[tileErrors + channel * FOURS] = error;
}
