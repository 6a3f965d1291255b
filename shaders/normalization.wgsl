// Dual-scale variance normalization. The balanced iterates are never stored: the spreads of their rows and
// columns come from sweeps over the tile with one vector of inverse scales applied, two sweeps an iteration.
// Scales are kept as such, not as logarithms: clipping them is the same there.
//
// A tile that is KEPT in registers is one block: the rows of a patch are unrolled, and whoever includes this
// opens row r by `openRow_r`. Else each row is a block of its own, and read again in each sweep.

//# include patch

override BLOCKS: u32;

//# if !KEPT
//# for r in 0..1
fn openRow_r(block: u32) {
  readRow(block);
}
//# end
//# end

const LEAST_SPREAD = 1e-3;
const MOST_SPREAD = 1e3;
const LEAST_SCALE = 0.7408182206817179; // e^-0.3
const MOST_SCALE = 22026.465794806718; // e^10
// Iterates whose imbalances differ by less than this factor tie: what differs there is rounding.
const TIE = 1.000002;

// What an invocation knows of its two rows or columns.
struct Lines {
  spread: vec2f,
  scale: vec2f,
  // Scales of the most balanced iterate so far.
  best: vec2f,
}

var<private> rows: Lines;
var<private> columns: Lines;

override LINES: u32 = ROWS + COLUMNS;

// Of rows and then of columns, in the order of their numbers.
var<workgroup> inverses: array<f32, LINES>;

// Bits of the largest and of the smallest spread of rows and of columns: of numbers that are not negative,
// they are ordered as the numbers are.
var<workgroup> most: array<atomic<u32>, 2>;
var<workgroup> least: array<atomic<u32>, 2>;

fn shareInverses(start: u32, lines: u32, scale: vec2f) {
  let inverse = 1.0 / scale;
  if (index < lines) {
    inverses[start + index] = inverse.x;
  }
  if (index + 256u < lines) {
    inverses[start + index + 256u] = inverse.y;
  }
}

fn takeColumnInverses() {
  var number = ROWS + columnLane;
  //# for c in 0..COLUMNS / 16
  inverse_c = inverses[number];
  number += 16u;
  //# end
}

// Mean and sum of squared deviations of `count` elements, from the sums of their deviations from a centre and
// of the squares of those. With one of the elements as the centre, no more is lost to cancellation than a
// factor of `count`, wherever the elements lie; and elements that are equal have no spread at all.
fn momentsOf(centre: f32, sum: f32, squares: f32, count: u32) -> vec2f {
  let shift = sum / f32(count);
  return vec2f(centre + shift, max(squares - sum * shift, 0.0));
}

// `spread` with the unbiased standard deviation of a line of `count` elements, whose 16 equal parts are in
// `partials`.
fn mergeSpread(spread: vec2f, k: u32, lines: u32, count: u32) -> vec2f {
  if (!isMerged(k, lines)) {
    return spread;
  }
  let slot = slotOf(k);
  let centre = partials[slot].x;
  var sum = 0.0;
  for (var part = 1u; part < 16u; part++) {
    sum += partials[part * STRIDE + slot].x - centre;
  }
  let mean = centre + sum / 16.0;
  var within = 0.0;
  var between = 0.0;
  for (var part = 0u; part < 16u; part++) {
    let moments = partials[part * STRIDE + slot];
    within += moments.y;
    between += (moments.x - mean) * (moments.x - mean);
  }
  return withOwn(spread, k, sqrt((within + f32(count / 16u) * between) / f32(count - 1u)));
}

// Spreads of the rows of the tile divided by the columns' scales.
fn sweepRows() {
  takeColumnInverses();
  var k = 0u;
  for (var block = 0u; block < BLOCKS; block++) {
    //# for r in 0..ROWS / 16 / BLOCKS
    openRow_r(block);
    {
      //# for c in 0..1
      let centre = x_c * inverse_c;
      //# end
      var sum = 0.0;
      var squares = 0.0;
      //# for c in 0..COLUMNS / 16
      let deviation_c = x_c * inverse_c - centre;
      sum += deviation_c;
      squares += deviation_c * deviation_c;
      //# end
      placePartial(k, rowLane, columnLane, momentsOf(centre, sum, squares, COLUMNS / 16u));
    }
    //# if !KEPT || $r % 2 == 1 || $r == ROWS / 16 - 1
    if (endsChunk(k, ROWS)) {
      workgroupBarrier();
      rows.spread = mergeSpread(rows.spread, k, ROWS, COLUMNS);
      workgroupBarrier();
    }
    //# end
    k++;
    //# end
  }
}

// Spreads of the columns of the tile divided by the rows' scales.
fn sweepColumns() {
  //# for c in 0..COLUMNS / 16
  var centre_c = 0.0;
  var sum_c = 0.0;
  var squares_c = 0.0;
  //# end
  var k = 0u;
  for (var block = 0u; block < BLOCKS; block++) {
    //# for r in 0..ROWS / 16 / BLOCKS
    openRow_r(block);
    {
      let inverse = inverses[16u * k + rowLane];
      //# for c in 0..COLUMNS / 16
      if (k == 0u) {
        centre_c = x_c * inverse;
      }
      let deviation_c = x_c * inverse - centre_c;
      sum_c += deviation_c;
      squares_c += deviation_c * deviation_c;
      //# end
    }
    k++;
    //# end
  }
  k = 0u;
  //# for c in 0..COLUMNS / 16
  placePartial(k, columnLane, rowLane, momentsOf(centre_c, sum_c, squares_c, ROWS / 16u));
  //# if $c % 2 == 1 || $c == COLUMNS / 16 - 1
  workgroupBarrier();
  columns.spread = mergeSpread(columns.spread, k, COLUMNS, ROWS);
  workgroupBarrier();
  //# end
  k++;
  //# end
}

// Takes the spreads into the scales, within their limits; and the spreads after that.
fn rescale(lines: Lines) -> Lines {
  let factor = clamp(lines.spread, vec2f(LEAST_SPREAD), vec2f(MOST_SPREAD));
  let next = clamp(lines.scale * factor, vec2f(LEAST_SCALE), vec2f(MOST_SCALE));
  return Lines(lines.spread * lines.scale / next, next, lines.best);
}

fn compareSpreads(axis: u32, lines: u32, spread: vec2f) {
  if (index < lines) {
    atomicMax(&most[axis], bitcast<u32>(spread.x));
    atomicMin(&least[axis], bitcast<u32>(spread.x));
  }
  if (index + 256u < lines) {
    atomicMax(&most[axis], bitcast<u32>(spread.y));
    atomicMin(&least[axis], bitcast<u32>(spread.y));
  }
}

// Ratio of the largest spread of rows or columns to the smallest.
fn spreadRatio(axis: u32) -> f32 {
  return bitcast<f32>(atomicLoad(&most[axis])) / max(bitcast<f32>(atomicLoad(&least[axis])), 1e-8);
}

// Finds the scales of the most balanced iterate, the later one among equals.
fn normalizeTile(iterations: u32) {
  rows = Lines(vec2f(1.0), vec2f(1.0), vec2f(1.0));
  columns = rows;
  shareInverses(0u, ROWS, rows.scale);
  shareInverses(ROWS, COLUMNS, columns.scale);
  var leastImbalance = 1e30;
  // Once more than there are iterations, as the tile as it is counts, too.
  for (var i = 0u; i <= iterations; i++) {
    workgroupBarrier();
    if (index < 2u) {
      atomicStore(&most[index], 0u);
      atomicStore(&least[index], 0x7f800000u);
    }
    sweepRows();
    rows.spread /= rows.scale;
    if (i > 0u) {
      rows = rescale(rows);
    }
    compareSpreads(0u, ROWS, rows.spread);
    shareInverses(0u, ROWS, rows.scale);
    workgroupBarrier();
    sweepColumns();
    columns.spread /= columns.scale;
    compareSpreads(1u, COLUMNS, columns.spread);
    workgroupBarrier();
    let imbalance = spreadRatio(0u) + spreadRatio(1u);
    if (imbalance <= leastImbalance * TIE) {
      leastImbalance = imbalance;
      rows.best = rows.scale;
      columns.best = columns.scale;
    }
    columns = rescale(columns);
    shareInverses(ROWS, COLUMNS, columns.scale);
  }
  workgroupBarrier();
}
