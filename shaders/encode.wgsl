// Encodes tiles of exact tokens into one half of their records, K or V: normalizes, rounds and packs in one
// go, a workgroup for each tile and KV head. A tile that is KEPT stays in registers while it is normalized,
// as the pairs of binary16 that it is.

override KEYS: bool;

struct Params {
  // Tiles times KV heads.
  count: u32,
  // Workgroups side by side in the grid's first dimension.
  stride: u32,
  kvHeads: u32,
  iterations: u32,
  // Sizes and offsets in words. Of a record:
  recordWords: u32,
  codes: u32,
  rowScale: u32,
  rowZero: u32,
  columnScale: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
// `[token][2 (K, V)][kvHeads][headDim]` binary16 each.
@group(0) @binding(1) var<storage, read> exact: array<u32>;
@group(0) @binding(2) var<storage, read_write> records: array<u32>;
// Of each tile the offsets, in words, of its tokens and of its records.
@group(0) @binding(3) var<storage, read> tiles: array<vec2u>;

const HALF_MAX = 65504.0;

// Binary16 numbers from the start of `exact` to the invocation's patch, and from one row and column to the
// next.
var<private> patchStart: u32;
var<private> rowStep: u32;
var<private> columnStep: u32;

// Words from the start of `records` to the record.
var<private> record: u32;

// Bits of the largest zero point.
var<workgroup> largestZero: atomic<u32>;

//# include half
//# include normalization
//# include rounding

fn readRow(k: u32) {
  var at = patchStart + 16u * k * rowStep;
  //# for c in 0..COLUMNS / 16
  x_c = halfOf(exact[at / 2u], at);
  at += columnStep;
  //# end
}

//# if KEPT
//# for r in 0..ROWS / 16
//# for p in 0..(COLUMNS / 16 + 1) / 2
// Columns 2p and 2p + 1 of the patch.
var<private> kept_r_p: u32;
//# end
//# end

fn bitsOf(at: u32) -> u32 {
  return (exact[at / 2u] >> (16u * (at & 1u))) & 0xffffu;
}

fn keepTile() {
  var start = patchStart;
  //# for r in 0..ROWS / 16
  {
    var at = start;
    //# for p in 0..(COLUMNS / 16 + 1) / 2
    kept_r_p = bitsOf(at);
    at += columnStep;
    //# if 2 * $p + 1 < COLUMNS / 16
    kept_r_p |= bitsOf(at) << 16u;
    at += columnStep;
    //# end
    //# end
    start += 16u * rowStep;
  }
  //# end
}

//# for r in 0..ROWS / 16
fn openRow_r(block: u32) {
  //# for c in 0..COLUMNS / 16
  //# for p in $c / 2..$c / 2 + 1
  //# if $c % 2 == 0
  x_c = unpack2x16float(kept_r_p).x;
  //# else
  x_c = unpack2x16float(kept_r_p).y;
  //# end
  //# end
  //# end
}
//# end
//# end

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
  if (index < COLUMNS) {
    inverses[columnOf(index)] = columns.best.x / factor;
  }
  if (index + 256u < COLUMNS) {
    inverses[columnOf(index + 256u)] = columns.best.y / factor;
  }
  workgroupBarrier();
  for (var i = index; i < COLUMNS / 2u; i += 256u) {
    records[record + params.columnScale + i] = packHalves(inverses[2u * i], inverses[2u * i + 1u]);
  }
}

@compute @workgroup_size(256)
fn encode(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) invocation: u32) {
  let job = group.y * params.stride + group.x;
  if (job >= params.count) {
    return;
  }
  let tile = tiles[job / params.kvHeads];
  let head = job % params.kvHeads;
  record = tile.y + head * params.recordWords;

  // Neighbouring invocations have neighbouring channels.
  index = invocation;
  //# if KEYS
  rowLane = index % 16u;
  columnLane = index / 16u;
  rowStep = 1u;
  columnStep = 2u * params.kvHeads * ROWS;
  patchStart = 2u * tile.x + head * ROWS;
  //# else
  rowLane = index / 16u;
  columnLane = index % 16u;
  rowStep = 2u * params.kvHeads * COLUMNS;
  columnStep = 1u;
  patchStart = 2u * tile.x + (params.kvHeads + head) * COLUMNS;
  //# end
  patchStart += rowLane * rowStep + columnLane * (COLUMNS / 16u) * columnStep;
  //# if KEPT
  keepTile();
  //# end

  if (index == 0u) {
    atomicStore(&largestZero, 0u);
  }
  normalizeTile(params.iterations);
  shareInverses(ROWS, COLUMNS, columns.best);
  workgroupBarrier();
  takeColumnInverses();
  findSteps(rows.best);
  atomicMax(&largestZero, bitcast<u32>(max(abs(zeros.x), abs(zeros.y))));
  roundRows();
  storeScales();
}
