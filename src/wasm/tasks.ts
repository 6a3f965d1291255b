/** Work on tiles, cut into tasks that do not depend on each other. */
import type { Kernels } from "./module.js";

/** The kernels that tasks call. */
export type TaskKernels = Pick<
  Kernels,
  | "setMask"
  | "hideTokens"
  | "attendRecord"
  | "attendRecordF32"
  | "attendExact"
  | "encodeKeys"
  | "encodeValues"
  | "refineKeys"
  | "refineValues"
>;

/** How attention is cut: each task takes some KV heads, and one of several parts of the sequence. */
export interface Cut {
  readonly headsPerTask: number;
  readonly parts: number;
}

/** Runs tasks, one after another or several at a time. */
export interface Tasks {
  /** Where the calls of a task go; what they do is done when {@link finish} returns. */
  readonly kernels: TaskKernels;
  /** How to cut attention over so many KV heads and tiles. The same for the same numbers. */
  cut(kvHeads: number, tiles: number): Cut;
  /** How many tiles are worth encoding at once. */
  readonly tilesAtOnce: number;
  /**
   * Begins a task: the calls from here on.
   * @param cost about how many nanoseconds it takes
   */
  begin(cost: number): void;
  /** An address with room for what one call of {@link writeTokens} reads, until {@link finish}. */
  stage(): number;
  /**
   * A task that takes tokens in.
   * @param onBad called with the first row that is not finite, at {@link finish} at the latest
   */
  writeTokens(onBad: (row: number) => never, ...args: Parameters<Kernels["writeTokens"]>): void;
  /**
   * Encodes a tile of one head, in the present task.
   * @param onBad called if it is not finite, at {@link finish} at the latest
   */
  encodeNew(
    kernel: "encodeNewKeys" | "encodeNewValues",
    onBad: () => void,
    source: number,
    stride: number,
    ...tile: number[]
  ): void;
  /** Lets the tasks begun so far run while more are put down. */
  share(): void;
  /** Clears the rows of a part that is not the first, in the present task. */
  clearRows(rows: number, headDim: number, sums: number, states: number): void;
  /** Adds the rows of all parts to the first's, when the tasks are done. */
  combineParts(parts: number, rows: number, headDim: number, sums: number, states: number): void;
  /** Sees all tasks begun to their end. Throws when that cannot be. */
  finish(): void;
  /** Throws once no task can be run any more. */
  checkAlive(): void;
  dispose(): void;
}

/** One task after another, on the thread that calls; the sequence is one part. */
export function inTurn(kernels: Kernels): Tasks {
  return {
    kernels,
    cut: (kvHeads) => ({ headsPerTask: kvHeads, parts: 1 }),
    tilesAtOnce: 1,
    begin() {},
    stage: () => kernels.tile.value as number,
    writeTokens(onBad, source, half, tokens, kvHeads, headDim, target, stride) {
      const bad = kernels.writeTokens(source, half, tokens, kvHeads, headDim, target, stride);
      if (bad >= 0) onBad(bad);
    },
    encodeNew(kernel, onBad, source, stride, ...tile) {
      if (!kernels[kernel](source, stride, ...tile)) onBad();
    },
    share() {},
    clearRows() {},
    combineParts() {},
    finish() {},
    checkAlive() {},
    dispose() {},
  };
}
