// Normalizes tiles, a workgroup each.

struct Params {
  count: u32,
  // Workgroups side by side in the grid's first dimension.
  stride: u32,
  iterations: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// `[count][ROWS][COLUMNS]`
@group(0) @binding(1) var<storage, read> tiles: array<f32>;
// The tiles divided by their scales.
@group(0) @binding(2) var<storage, read_write> balanced: array<f32>;
// `[count][ROWS]`
@group(0) @binding(3) var<storage, read_write> rowScale: array<f32>;
// `[count][COLUMNS]`
@group(0) @binding(4) var<storage, read_write> columnScale: array<f32>;

// Numbers from the start of `tiles` to the invocation's patch.
var<private> patchStart: u32;

//# include normalization

fn readRow(k: u32) {
  var at = patchStart + 16u * k * COLUMNS;
  //# for c in 0..COLUMNS / 16
  x_c = tiles[at];
  at++;
  //# end
}

fn storeBalanced() {
  for (var k = 0u; k < ROWS / 16u; k++) {
    readRow(k);
    let inverse = inverses[16u * k + rowLane];
    var at = patchStart + 16u * k * COLUMNS;
    //# for c in 0..COLUMNS / 16
    balanced[at] = x_c * inverse_c * inverse;
    at++;
    //# end
  }
}

@compute @workgroup_size(256)
fn normalize(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) invocation: u32) {
  let tile = group.y * params.stride + group.x;
  if (tile >= params.count) {
    return;
  }
  index = invocation;
  rowLane = index / 16u;
  columnLane = index % 16u;
  patchStart = (tile * ROWS + rowLane) * COLUMNS + columnLane * (COLUMNS / 16u);

  normalizeTile(params.iterations);
  shareInverses(0u, ROWS, rows.best);
  shareInverses(ROWS, COLUMNS, columns.best);
  workgroupBarrier();
  takeColumnInverses();
  storeBalanced();

  if (index < ROWS) {
    rowScale[tile * ROWS + index] = rows.best.x;
  }
  if (index + 256u < ROWS) {
    rowScale[tile * ROWS + index + 256u] = rows.best.y;
  }
  if (index < COLUMNS) {
    columnScale[tile * COLUMNS + columnOf(index)] = columns.best.x;
  }
  if (index + 256u < COLUMNS) {
    columnScale[tile * COLUMNS + columnOf(index + 256u)] = columns.best.y;
  }
}
