// The unnormalized Walsh-Hadamard transform of `row`, D values in blocks of BLOCK, by 64 invocations. Additions come in
// the order of the reference, strides 1, 2, 4, …, so that results are the same bits; two strides at a time, as each
// barrier costs more than they do.
fn transformRow(lane: u32) {
  for (var stride = 1u; stride < BLOCK; stride *= 4u) {
    workgroupBarrier();
    if (2u * stride < BLOCK) {
      for (var four = lane; four < D / 4u; four += 64u) {
        let i = 4u * four - 3u * (four & (stride - 1u));
        let sum = row[i] + row[i + stride];
        let difference = row[i] - row[i + stride];
        let nextSum = row[i + 2u * stride] + row[i + 3u * stride];
        let nextDifference = row[i + 2u * stride] - row[i + 3u * stride];
        row[i] = sum + nextSum;
        row[i + stride] = difference + nextDifference;
        row[i + 2u * stride] = sum - nextSum;
        row[i + 3u * stride] = difference - nextDifference;
      }
    } else {
      for (var pair = lane; pair < D / 2u; pair += 64u) {
        let i = 2u * pair - (pair & (stride - 1u));
        let a = row[i];
        let b = row[i + stride];
        row[i] = a + b;
        row[i + stride] = a - b;
      }
    }
  }
  workgroupBarrier();
}
