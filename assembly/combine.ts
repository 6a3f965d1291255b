// Attention whose sequence was cut into parts: each part has sums and states of its own for the same rows.

import { exp4 } from "./exp";
import { madd } from "./lanes";
import { scale } from "./vectors";

// Rows that have seen nothing yet.
export function clearRows(rows: i32, headDim: i32, sums: usize, states: usize): void {
  memory.fill(sums, 0, (<usize>rows * headDim) << 2);
  for (const end = states + ((<usize>rows) << 3); states < end; states += 8) {
    store<f32>(states, -Infinity);
    store<f32>(states, 0, 4);
  }
}

// Adds all `parts` of `rows` rows to the first, in their order. Sums of one part come after those of the other, and so
// do states.
export function combineParts(parts: i32, rows: i32, headDim: i32, sums: usize, states: usize): void {
  const rowBytes = (<usize>headDim) << 2;
  const partBytes = <usize>rows * rowBytes;
  const partStates = (<usize>rows) << 3;
  for (let row = 0; row < rows; row++, sums += rowBytes, states += 8) {
    let most = load<f32>(states);
    for (let part = 1; part < parts; part++) most = max(most, load<f32>(states + <usize>part * partStates));
    const factor = f32x4.extract_lane(exp4(f32x4.splat(load<f32>(states) - most)), 0);
    let weights = load<f32>(states, 4) * factor;
    scale(sums, factor, headDim);
    for (let part = 1; part < parts; part++) {
      const state = states + <usize>part * partStates;
      const by = exp4(f32x4.splat(load<f32>(state) - most));
      weights += load<f32>(state, 4) * f32x4.extract_lane(by, 0);
      const added = sums + <usize>part * partBytes;
      for (let at: usize = 0; at < rowBytes; at += 16) {
        v128.store(sums + at, madd(v128.load(added + at), by, v128.load(sums + at)));
      }
    }
    store<f32>(states, most);
    store<f32>(states, weights, 4);
  }
}
