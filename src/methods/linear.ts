/** What query-aware rounding needs of linear algebra, in f64. Matrices are square and row-major. */

/** Sweeps over all pairs of a matrix; those of a few hundred rows converge in about ten. */
const SWEEPS = 30;

/**
 * Eigenvalues and eigenvectors of a symmetric matrix (cyclic Jacobi), in descending order of value.
 * @param matrix `[n, n]`, positive semidefinite
 * @returns `vectors`: `[n, n]`, one a row
 */
export function eigen(matrix: Float64Array, n: number): { values: Float64Array; vectors: Float64Array } {
  const a = matrix.slice();
  const vectors = identity(n);
  const small = 1e-26 * a.reduce((sum, x) => sum + x * x, 0);
  for (let sweep = 0; sweep < SWEEPS && offDiagonal(a, n) > small; sweep++) {
    for (let p = 0; p < n - 1; p++) {
      for (let q = p + 1; q < n; q++) annihilate(a, vectors, n, p, q);
    }
  }
  const order = Array.from({ length: n }, (_, i) => i).sort((i, j) => a[j * n + j] - a[i * n + i]);
  const sorted = new Float64Array(n * n);
  order.forEach((from, to) => sorted.set(vectors.subarray(from * n, (from + 1) * n), to * n));
  return { values: Float64Array.from(order, (i) => a[i * n + i]), vectors: sorted };
}

/** Turns rows and columns p and q so that their common element becomes zero. */
function annihilate(a: Float64Array, vectors: Float64Array, n: number, p: number, q: number): void {
  const common = a[p * n + q];
  if (common === 0) return;
  const theta = (a[q * n + q] - a[p * n + p]) / (2 * common);
  const tangent = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
  const cosine = 1 / Math.sqrt(tangent * tangent + 1);
  const sine = tangent * cosine;
  const [first, second] = [a[p * n + p] - tangent * common, a[q * n + q] + tangent * common];
  turn(a, p * n, q * n, n, cosine, sine);
  // The matrix stays symmetric: columns are copies of rows, but for what both of them cross.
  for (let i = 0; i < n; i++) {
    a[i * n + p] = a[p * n + i];
    a[i * n + q] = a[q * n + i];
  }
  a[p * n + p] = first;
  a[q * n + q] = second;
  a[p * n + q] = 0;
  a[q * n + p] = 0;
  turn(vectors, p * n, q * n, n, cosine, sine);
}

/** Turns two rows that begin at `p` and `q` in their plane. */
function turn(rows: Float64Array, p: number, q: number, n: number, cosine: number, sine: number): void {
  for (let i = 0; i < n; i++) {
    const x = rows[p + i];
    const y = rows[q + i];
    rows[p + i] = cosine * x - sine * y;
    rows[q + i] = sine * x + cosine * y;
  }
}

function offDiagonal(a: Float64Array, n: number): number {
  let sum = 0;
  for (let p = 0; p < n; p++) for (let q = p + 1; q < n; q++) sum += a[p * n + q] ** 2;
  return sum;
}

/** The lower triangular `L` of a positive definite matrix `L L^T`. */
export function cholesky(matrix: Float64Array, n: number): Float64Array {
  const lower = new Float64Array(n * n);
  for (let row = 0; row < n; row++) {
    for (let column = 0; column <= row; column++) {
      let sum = matrix[row * n + column];
      for (let i = 0; i < column; i++) sum -= lower[row * n + i] * lower[column * n + i];
      lower[row * n + column] = row === column ? Math.sqrt(sum) : sum / lower[column * n + column];
    }
  }
  return lower;
}

/** `[n, n]` */
export function identity(n: number): Float64Array {
  const result = new Float64Array(n * n);
  for (let i = 0; i < n; i++) result[i * n + i] = 1;
  return result;
}
