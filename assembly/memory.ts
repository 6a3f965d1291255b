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

// One f32 tile, of K or of V.
export const TILE: usize = BASE;
// Another, for its transpose.
export const TRANSPOSED: usize = TILE + MAX_TILE * 4;
// Codes as bytes, of K and of V, each with room to write 8 bytes past the last row.
export const K_BYTES: usize = TRANSPOSED + MAX_TILE * 4;
export const V_BYTES: usize = K_BYTES + MAX_TILE + 16;

// Vectors of f32, one value for each row or column of a tile.
export const ROW_SCALE: usize = V_BYTES + MAX_TILE + 16;
export const ROW_INVERSE: usize = ROW_SCALE + VECTOR;
export const ROW_STD: usize = ROW_INVERSE + VECTOR;
export const BEST_ROW_SCALE: usize = ROW_STD + VECTOR;
export const COLUMN_SCALE: usize = BEST_ROW_SCALE + VECTOR;
export const COLUMN_INVERSE: usize = COLUMN_SCALE + VECTOR;
export const COLUMN_STD: usize = COLUMN_INVERSE + VECTOR;
export const BEST_COLUMN_SCALE: usize = COLUMN_STD + VECTOR;
// What a sweep subtracts from the few rows or columns that it is at.
export const CENTRES: usize = BEST_COLUMN_SCALE + VECTOR;
// The rounding pairs of the rows.
export const CODE_SCALE: usize = CENTRES + 32;
export const CODE_ZERO: usize = CODE_SCALE + VECTOR;

// The scales of one record, as f32.
export const K_SCALE: usize = CODE_ZERO + VECTOR;
export const K_ZERO: usize = K_SCALE + VECTOR;
export const K_TOKEN: usize = K_ZERO + VECTOR;
export const V_SCALE: usize = K_TOKEN + VECTOR;
export const V_TOKEN: usize = V_SCALE + VECTOR;
export const V_ZERO: usize = V_TOKEN + VECTOR;

// Attention of up to four query heads with one tile.
export const HEADS: usize = 4;
// Coefficients of the rows of a tile: f32 or pairs of i16.
export const COEFFICIENTS: usize = V_ZERO + VECTOR;
// Sums over rows: as they accumulate, and in order.
export const ACCUMULATED: usize = COEFFICIENTS + HEADS * VECTOR;
export const DOTS: usize = ACCUMULATED + HEADS * VECTOR;
// Scores, then probabilities, of the tokens of a tile.
export const SCORES: usize = DOTS + HEADS * VECTOR;

// One f32 for each head: what its integer coefficients were multiplied by, what is added to its sums, and the factor
// that brings its earlier sums to the present maximum.
export const STEPS: usize = SCORES + HEADS * VECTOR;
export const OFFSETS: usize = STEPS + HEADS * 4;
export const DECAYS: usize = OFFSETS + HEADS * 4;

export const END: usize = DECAYS + HEADS * 4;
