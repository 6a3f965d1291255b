// A tile of exact tokens, K or V of one KV head, on the invocations of `patch.wgsl`: its rows are read again each time, or
// KEPT in registers, as the pairs of binary16 that they are.

override KEYS: bool;

//# include encode-params
//# include half
//# include normalization

// Binary16 numbers from the start of `exact` to the invocation's patch.
var<private> patchStart: u32;

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

// Sets the invocation's patch, and where the record lies, for a tile and KV head.
fn openTile(job: u32, invocation: u32) {
  openRecord(job);
  // Neighbouring invocations have neighbouring channels.
  index = invocation;
  //# if KEYS
  rowLane = index % 16u;
  columnLane = index / 16u;
  //# else
  rowLane = index / 16u;
  columnLane = index % 16u;
  //# end
  patchStart = tileStart + rowLane * rowStep + columnLane * (COLUMNS / 16u) * columnStep;
  //# if KEPT
  keepTile();
  //# end
}

// Normalizes the tile; each `inverse_c` is then that of the column's best scale.
fn balanceColumns() {
  normalizeTile(params.iterations);
  shareInverses(ROWS, COLUMNS, columns.best);
  workgroupBarrier();
  takeColumnInverses();
}

// Stores the best scales of the columns, divided by a factor.
fn storeColumnScales(factor: f32) {
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
