// Rounds and packs tiles, a workgroup each.

struct Params {
  count: u32,
  // Workgroups side by side in the grid's first dimension.
  stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// `[count][ROWS][COLUMNS]`
@group(0) @binding(1) var<storage, read> tiles: array<f32>;
// One stream of codes per tile.
@group(0) @binding(2) var<storage, read_write> codes: array<u32>;
// `[count][ROWS]` each.
@group(0) @binding(3) var<storage, read_write> scale: array<f32>;
@group(0) @binding(4) var<storage, read_write> zero: array<f32>;

// Numbers from the start of `tiles` to the invocation's patch, words from the start of `codes` to the tile's.
var<private> patchStart: u32;
var<private> codesStart: u32;

//# include rounding

fn readRow(k: u32) {
  var at = patchStart + 16u * k * COLUMNS;
  //# for c in 0..COLUMNS / 16
  x_c = tiles[at];
  at++;
  //# end
}

fn storeCodes(at: u32, word: u32) {
  codes[codesStart + at] = word;
}

@compute @workgroup_size(256)
fn pack(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) invocation: u32) {
  let tile = group.y * params.stride + group.x;
  if (tile >= params.count) {
    return;
  }
  index = invocation;
  rowLane = index / 16u;
  columnLane = index % 16u;
  patchStart = (tile * ROWS + rowLane) * COLUMNS + columnLane * (COLUMNS / 16u);
  codesStart = tile * (ROWS * COLUMNS / 32u * BITS);

  findSteps(vec2f(1.0));
  for (var row = index; row < ROWS; row += 256u) {
    zero[tile * ROWS + row] = partials[row].x;
    scale[tile * ROWS + row] = partials[row].y;
  }
  roundRows();
}
