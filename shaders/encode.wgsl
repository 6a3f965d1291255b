// Encodes tiles of exact tokens into one half of their records, K or V: normalizes, rounds and packs in one
// go, a workgroup for each tile and KV head. A tile that is KEPT stays in registers while it is normalized,
// as the pairs of binary16 that it is.

// Bits of the largest zero point.
var<workgroup> largestZero: atomic<u32>;

//# include encode-tile
//# include rounding

fn storeCodes(at: u32, word: u32) {
  records[record + params.codes + at] = word;
}

fn storeScales() {
  // Zero points of an even tile near 65504 exceed binary16 by up to a third: the columns can take a factor.
  let factor = select(1.0, 0.5, bitcast<f32>(atomicLoad(&largestZero)) > HALF_MAX);
  for (var i = index; i < ROWS / 2u; i += 256u) {
    let first = partials[2u * i] * factor;
    let second = partials[2u * i + 1u] * factor;
    records[record + params.rowZero + i] = packHalves(first.x, second.x);
    records[record + params.rowScale + i] = packHalves(first.y, second.y);
  }
  storeColumnScales(factor);
}

@compute @workgroup_size(256)
fn encode(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) invocation: u32) {
  let job = group.y * params.stride + group.x;
  if (job >= params.count) {
    return;
  }
  openTile(job, invocation);
  if (index == 0u) {
    atomicStore(&largestZero, 0u);
  }
  balanceColumns();
  findSteps(rows.best);
  atomicMax(&largestZero, bitcast<u32>(max(abs(zeros.x), abs(zeros.y))));
  roundRows();
  storeScales();
}
