// The queries of ROWS rows of one KV head, rotated and times the softmax scale.

// [channel]
var<workgroup> row: array<Rows, D>;

//# include hadamard
//# include half

// Where a query row begins among the elements of q.
fn beginOf(number: u32, kvHead: u32) -> u32 {
  let head = kvHead * params.headsPerKvHead + number % params.headsPerKvHead;
  return (number / params.headsPerKvHead * params.queryHeads + head) * D;
}

fn queryAt(element: u32) -> f32 {
  //# if HALF
  return halfOf(q[params.start + element / 2u], element);
  //# else
  return bitcast<f32>(q[params.start + element]);
  //# end
}

// Fills `row`; 64 invocations.
fn takeQueries(block: u32, kvHead: u32, lane: u32) {
  //# for r in 0..ROWS
  let number_r = block * ROWS + $r;
  let begin_r = beginOf(number_r, kvHead);
  //# end
  for (var i = lane; i < D; i += 64u) {
    var queries = Rows(0.0);
    //# for r in 0..ROWS
    // Rows that complete the last block have zeros.
    if (number_r < params.rows) {
      queries = withRow(queries, $r, queryAt(begin_r + i));
    }
    //# end
    row[i] = queries;
  }
  transformRow(lane);
  for (var i = lane; i < D; i += 64u) {
    row[i] *= inverseSqrt(f32(BLOCK)) * params.softmaxScale;
  }
  workgroupBarrier();
}
