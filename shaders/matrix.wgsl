// Products of 8-bit integers on matrix units, and what the 32 invocations of a subgroup do together.

enable chromium_experimental_subgroup_matrix;
enable subgroups;
diagnostic(off, chromium.subgroup_matrix_uniformity);

alias Left = subgroup_matrix_left<i8, 32, 16>;
alias Right = subgroup_matrix_right<i8, 16, 32>;
alias Product = subgroup_matrix_result<i32, 16, 16>;

// 16 rows of 32 k.
fn leftAt(step: u32) -> Left {
  return subgroupMatrixLoad<Left, row_major>(&digits, step * DIGITS_STEP, 8u);
}

// 16 of a subgroup's columns of 32 k.
fn rightAt(subgroup: u32, columns: u32, step: u32) -> Right {
  return subgroupMatrixLoad<Right, col_major>(&codes[subgroup], columns * CODES_ROW + step * 8u, CODES_ROW);
}

fn storeProduct(subgroup: u32, column: u32, product: Product) {
  subgroupMatrixStore<row_major>(&codes[subgroup], column, product, SUMS_ROW);
}

fn multiplied(left: Left, right: Right, product: Product) -> Product {
  return subgroupMatrixMultiplyAccumulate(left, right, product);
}

fn mostOf(x: u32) -> u32 {
  return subgroupMax(x);
}

fn sumOf(x: f32) -> f32 {
  return subgroupAdd(x);
}

fn exchanged(x: vec4f, distance: u32) -> vec4f {
  return subgroupShuffleXor(x, distance);
}
