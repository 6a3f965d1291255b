/** Runs attend-f16.wgsl: what a decode step over an uncompressed cache takes on the same GPU. */
import { type Binding, floatBits, type Gpu } from "../../src/webgpu/gpu.js";
import { readKernel } from "./kernel.js";

/** Query heads per KV head. */
const ROWS = 4;
/** Tokens that a workgroup takes at a time. */
const BLOCK = 128;
/** Workgroups that keep a large GPU busy. */
const ENOUGH_GROUPS = 264;

export interface AttendF16 {
  /**
   * Enqueues attention of one query token over `tokens` cached ones.
   * @param q f32 `[queryHeads, headDim]`, four query heads per KV head
   * @param keys binary16 `[kvHeads, tokens, headDim]`
   * @param values likewise
   * @param result f32 `[queryHeads, headDim]`
   */
  attend(q: Binding, keys: Binding, values: Binding, tokens: number, result: Binding): void;
}

/** @param headDim a multiple of 32 up to 256 */
export async function makeAttendF16(gpu: Gpu, kvHeads: number, headDim: number): Promise<AttendF16> {
  const constants = { D: headDim, COLUMNS: headDim / 8, TEAMS: 2048 / headDim };
  const [attend, combine] = await Promise.all(
    ["attend", "combine"].map((entry) => readKernel(gpu, "attend-f16", entry, constants)),
  );

  return {
    attend(q, keys, values, tokens, result) {
      const blocks = Math.ceil(tokens / BLOCK);
      const tokensPerSplit = Math.ceil(blocks / Math.min(blocks, Math.ceil(ENOUGH_GROUPS / kvHeads))) * BLOCK;
      const splits = Math.ceil(tokens / tokensPerSplit);
      const params = [tokens, tokensPerSplit, kvHeads, splits, floatBits(1 / Math.sqrt(headDim))];
      const partials = {
        buffer: gpu.scratch("attend-f16-partials", kvHeads * splits * (headDim + 2) * ROWS * 4),
      };
      gpu.dispatch({
        kernel: attend,
        params,
        bindings: [keys, values, q, partials],
        groups: [splits, kvHeads],
      });
      gpu.dispatch({
        kernel: combine,
        params,
        bindings: [partials, result],
        groups: [kvHeads, headDim / 16],
      });
    },
  };
}
