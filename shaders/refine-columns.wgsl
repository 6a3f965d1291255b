// The first step of the refined encoder: scales of the columns, those of the normalization times a power of two, so that
// those of the rows are in the range of binary16, too. `refine.wgsl` does the rest.

//# include encode-tile

const MOST_COLUMN_EXPONENT = 14;

fn exponentOf(x: f32) -> i32 {
  return i32(bitcast<u32>(x) >> 23u) - 127;
}

// 2 to the power of n, for normal numbers.
fn powerOfTwo(n: i32) -> f32 {
  return bitcast<f32>(u32(n + 127) << 23u);
}

@compute @workgroup_size(256)
fn refine_columns(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) invocation: u32) {
  let job = group.y * params.stride + group.x;
  if (job >= params.count) {
    return;
  }
  openTile(job, invocation);
  balanceColumns();
  if (index < 2u) {
    atomicStore(&most[index], 0u);
  }
  var largest = 0.0;
  for (var k = 0u; k < ROWS / 16u; k++) {
    readRow(k);
    //# for c in 0..COLUMNS / 16
    largest = max(largest, abs(x_c * inverse_c));
    //# end
  }
  workgroupBarrier();
  atomicMax(&most[0], bitcast<u32>(largest));
  compareSpreads(1u, COLUMNS, columns.best);
  workgroupBarrier();
  let largestValue = bitcast<f32>(atomicLoad(&most[0]));
  var share = 0;
  if (largestValue > 0.0) {
    // Half of the powers of two for either side, as far as the columns have room.
    let room = MOST_COLUMN_EXPONENT - exponentOf(bitcast<f32>(atomicLoad(&most[1])));
    share = min(exponentOf(largestValue) >> 1u, room);
  }
  storeColumnScales(powerOfTwo(-share));
}
