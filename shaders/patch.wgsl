// A tile of ROWS x COLUMNS on 256 invocations, a grid of 16 x 16. Each has a patch: every 16th row from its
// `rowLane` on, and there COLUMNS / 16 neighbouring columns from `columnLane * (COLUMNS / 16)` on. Line k of
// a patch, row or column, is by its number line `16 * k + lane` of the tile: rows are numbered in order,
// columns are not, see columnOf.
//
// Whoever includes this has `readRow(k)`, which reads row k of the patch into x_0, x_1, ….

override ROWS: u32;
override COLUMNS: u32;

// Lines of a chunk: two of each patch. More would take fewer barriers, but memory that long rows of codes
// need.
const CHUNK = 32u;

// One more than there are lines, so that 16 invocations that store for one line do not meet in a memory bank.
const STRIDE = 33u;

// What each of the 16 invocations that share a line found for it, for one chunk.
var<workgroup> partials: array<vec2f, 16 * STRIDE>;

var<private> index: u32;
var<private> rowLane: u32;
var<private> columnLane: u32;

//# for c in 0..COLUMNS / 16
var<private> x_c: f32;
// Of the scale of the column.
var<private> inverse_c: f32 = 1.0;
//# end

// The column of that number.
fn columnOf(number: u32) -> u32 {
  return (number % 16u) * (COLUMNS / 16u) + number / 16u;
}

fn placePartial(k: u32, lane: u32, otherLane: u32, partial: vec2f) {
  partials[otherLane * STRIDE + (k % 2u) * 16u + lane] = partial;
}

// Whether a chunk ends with line k of the patch. There are `lines` in the tile.
fn endsChunk(k: u32, lines: u32) -> bool {
  return k % 2u == 1u || k + 1u == lines / 16u;
}

// Invocation i merges for, and owns, the lines that are numbered i and i + 256; what it knows of them are the
// two components of a vector.

// The number of the first line of the chunk that line k of the patch is in.
fn firstOf(k: u32) -> u32 {
  return k / 2u * CHUNK;
}

// Which line of that chunk the invocation merges; beyond the chunk if none.
fn slotOf(k: u32) -> u32 {
  return (index - firstOf(k)) % 256u;
}

fn isMerged(k: u32, lines: u32) -> bool {
  return slotOf(k) < CHUNK && firstOf(k) + slotOf(k) < lines;
}

// `both` with what was found for a line of a chunk.
fn withOwn(both: vec2f, k: u32, value: f32) -> vec2f {
  return select(vec2f(both.x, value), vec2f(value, both.y), firstOf(k) < 256u);
}
