// The unnormalized Walsh-Hadamard transform of `row`, D values in blocks of BLOCK, by 64 invocations. Additions come in
// the order of the reference, strides 1, 2, 4, …, so that results are the same bits.
fn transformRow(lane: u32) {
  for (var stride = 1u; stride < BLOCK; stride *= 2u) {
    workgroupBarrier();
    for (var pair = lane; pair < D / 2u; pair += 64u) {
      let i = 2u * pair - (pair & (stride - 1u));
      let a = row[i];
      let b = row[i + stride];
      row[i] = a + b;
      row[i + stride] = a - b;
    }
  }
  workgroupBarrier();
}
