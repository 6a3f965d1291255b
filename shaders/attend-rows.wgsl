// Rows of queries, ROWS (1, 2 or 4) side by side in one value: a row is a query token and head; the rows of
// one KV head are numbered by token, then by head.

//# if ROWS == 1
alias Rows = f32;
alias RowNumbers = u32;
//# end
//# if ROWS == 2
alias Rows = vec2f;
alias RowNumbers = vec2u;
//# end
//# if ROWS == 4
alias Rows = vec4f;
alias RowNumbers = vec4u;
//# end

// Score of what a row does not see, below that of anything it sees.
const HIDDEN: f32 = -3.4028234e38;

fn rowOf(rows: Rows, index: u32) -> f32 {
  //# if ROWS == 1
  return rows;
  //# else
  return rows[index];
  //# end
}

fn withRow(rows: Rows, index: u32, value: f32) -> Rows {
  //# if ROWS == 1
  return value;
  //# else
  var changed = rows;
  changed[index] = value;
  return changed;
  //# end
}

fn rowNumbers(first: u32) -> RowNumbers {
  //# if ROWS == 1
  return first;
  //# end
  //# if ROWS == 2
  return first + vec2u(0u, 1u);
  //# end
  //# if ROWS == 4
  return first + vec4u(0u, 1u, 2u, 3u);
  //# end
}

// e^x for x of zero or less. An x beyond what f32 holds must not become one that is not a number.
fn expOf(x: Rows) -> Rows {
  return exp(max(x, Rows(-100.0)));
}

// cap * tanh(score / cap). GPUs' own tanh has an absolute error, and some overflow where it is 1 to the last bit: so a
// polynomial near zero (its coefficients are those of the Cephes library's tanhf), and a limit beyond.
fn capped(score: Rows, cap: f32) -> Rows {
  let x = score / cap;
  let z = x * x;
  var p = Rows(-5.70498872745e-3);
  p = p * z + 2.06390887954e-2;
  p = p * z - 5.37397155531e-2;
  p = p * z + 1.33314422036e-1;
  p = p * z - 3.33332819422e-1;
  let near = score + score * (p * z);
  let far = cap * tanh(clamp(x, Rows(-12.0), Rows(12.0)));
  return select(far, near, abs(x) < Rows(0.625));
}

// The scores of those rows that see a token: it is at most at the row's own position, and less than a window
// before it.
fn masked(score: Rows, token: u32, positions: RowNumbers, window: u32) -> Rows {
  let seen = (RowNumbers(token) <= positions) & (RowNumbers(token + window) > positions);
  return select(Rows(HIDDEN), score, seen);
}
