// Working memory of the kernels, fixed: one tile at a time is worked on. What lies from END on is the caller's. There is
// no static data (a test looks), so all addresses can be plain constants.

// In the builds with threads instances share one memory, and each is told where its own working memory begins: there
// addresses are globals, which costs kernels about a fortieth.
@external("env", "base")
declare const base: usize;
const BASE: usize = ASC_FEATURE_THREADS ? base : 1024;

// A tile has up to 512 x 128 elements, in either orientation.
const MAX_TILE: usize = 512 * 128;
// Bytes of a vector with one f32 for each row or column of a tile.
export const VECTOR: usize = 512 * 4;

// What panels of 8 columns, of which a tile has up to 64, lie apart from each other: a cache line.
export const PANEL_GAP: usize = 64;
const GAPS: usize = 64 * PANEL_GAP;

// One f32 tile, of K or of V.
export const TILE: usize = BASE;
// Another, for its transpose.
export const TRANSPOSED: usize = TILE + MAX_TILE * 4 + GAPS;
// A tile in quads of rows, as encoding takes it.
export const QUADS: usize = TRANSPOSED;
// Codes as bytes, of K and of V, each with room to write 8 bytes past the last row.
export const K_BYTES: usize = TRANSPOSED + MAX_TILE * 4 + GAPS;
export const V_BYTES: usize = K_BYTES + MAX_TILE + 16;

// Vectors of f32, one value for each row or column of a tile.
export const ROW_SCALE: usize = V_BYTES + MAX_TILE + 16;
export const ROW_INVERSE: usize = ROW_SCALE + VECTOR;
export const ROW_SPREAD: usize = ROW_INVERSE + VECTOR;
export const BEST_ROW_SCALE: usize = ROW_SPREAD + VECTOR;
export const COLUMN_SCALE: usize = BEST_ROW_SCALE + VECTOR;
export const COLUMN_INVERSE: usize = COLUMN_SCALE + VECTOR;
export const COLUMN_SPREAD: usize = COLUMN_INVERSE + VECTOR;
export const BEST_COLUMN_SCALE: usize = COLUMN_SPREAD + VECTOR;
// What a sweep subtracts from the few rows or columns that it is at.
export const CENTRES: usize = BEST_COLUMN_SCALE + VECTOR;
// Lanes are set where sums without centres lost digits, and where scales wanted a larger step than is allowed.
export const DOUBTS: usize = CENTRES + 32;
export const STEPPED: usize = DOUBTS + 16;
// How far one step may take scales, and what sums over a row and over a column are multiplied by: two f32 each.
export const STEP_LIMITS: usize = STEPPED + 16;
export const ROW_SHARES: usize = STEP_LIMITS + 8;
export const COLUMN_SHARES: usize = ROW_SHARES + 8;
// Sums of columns and of their squares.
export const COLUMN_SUM: usize = COLUMN_SHARES + 16;
export const COLUMN_SQUARES: usize = COLUMN_SUM + VECTOR;
// Of the four rows being rounded, the smallest values and the steps between codes.
export const LOWS: usize = COLUMN_SQUARES + VECTOR;
export const CODE_STEPS: usize = LOWS + 16;
// The rounding pairs of the rows.
export const CODE_SCALE: usize = CODE_STEPS + 16;
export const CODE_ZERO: usize = CODE_SCALE + VECTOR;

// See `held`.
export const CONSTANTS: usize = CODE_ZERO + VECTOR;

// The scales of one record, as f32.
export const K_SCALE: usize = CONSTANTS + 8 * 16;
export const K_ZERO: usize = K_SCALE + VECTOR;
export const K_TOKEN: usize = K_ZERO + VECTOR;
export const V_SCALE: usize = K_TOKEN + VECTOR;
export const V_TOKEN: usize = V_SCALE + VECTOR;
export const V_ZERO: usize = V_TOKEN + VECTOR;

// Attention of rows of queries with one tile: up to four on packed codes, up to ROWS on panels.
export const HEADS: usize = 4;
export const ROWS: usize = 16;
// Coefficients of the rows of a tile, of four queries side by side: f32 or pairs of i16.
export const COEFFICIENTS: usize = V_ZERO + VECTOR;
// Sums over rows as they accumulate, and in order.
export const ACCUMULATED: usize = COEFFICIENTS + ROWS * VECTOR;
export const DOTS: usize = ACCUMULATED + HEADS * VECTOR;
// Scores, then probabilities, of the tokens of a tile: up to 128 f32 for each query.
export const SCORE_BYTES: usize = 128 * 4;
export const SCORES: usize = DOTS + ROWS * VECTOR;

// One f32 for each query: what its integer coefficients were multiplied by, and the inverse of that; the sum of its
// coefficients; what is added to its sums; the factor that brings its earlier sums to the present maximum.
export const STEPS: usize = SCORES + ROWS * SCORE_BYTES;
export const INVERSES: usize = STEPS + ROWS * 4;
export const TOTALS: usize = INVERSES + ROWS * 4;
export const OFFSETS: usize = TOTALS + ROWS * 4;
export const DECAYS: usize = OFFSETS + ROWS * 4;

// Constants of 16 bytes, for loops: engines keep what is loaded before a loop in registers, and make written constants
// anew in every round.
export const ROUNDER: usize = DECAYS + ROWS * 4;
export const ONES: usize = ROUNDER + 16;
// The base and the least argument of the exponential, and the coefficients of its polynomial.
export const POWERS: usize = ONES + 16;

export const END: usize = POWERS + 8 * 16;
