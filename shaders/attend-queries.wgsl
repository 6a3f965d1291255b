// The queries of ROWS rows of one KV head, rotated and times the softmax scale. Every workgroup makes its
// own: they are few, and a dispatch ahead of all others costs more.

// [channel]
var<workgroup> row: array<Rows, D>;

//# include hadamard
//# include half

// Element i of a query row; zero for rows that complete the last block.
fn queryAt(number: u32, kvHead: u32, i: u32) -> f32 {
  if (number >= params.rows) {
    return 0.0;
  }
  let head = kvHead * params.headsPerKvHead + number % params.headsPerKvHead;
  let at = (number / params.headsPerKvHead * params.queryHeads + head) * D + i;
  //# if HALF
  return halfOf(q[params.start + at / 2u], at);
  //# else
  return bitcast<f32>(q[params.start + at]);
  //# end
}

// Fills `row`; 64 invocations.
fn takeQueries(block: u32, kvHead: u32, lane: u32) {
  let first = block * ROWS;
  for (var i = lane; i < D; i += 64u) {
    //# if ROWS == 1
    row[i] = queryAt(first, kvHead, i);
    //# else
    //# for r in 0..ROWS
    row[i][$r] = queryAt(first + $r, kvHead, i);
    //# end
    //# end
  }
  transformRow(lane);
  for (var i = lane; i < D; i += 64u) {
    row[i] *= inverseSqrt(f32(BLOCK)) * params.softmaxScale;
  }
  workgroupBarrier();
}
