import { checkInteger, describe, KvarnError } from "../errors.js";
import { affine } from "./affine.js";
import { kiviParts, type KiviOptions } from "./kivi.js";
import { compose, type Method } from "./method.js";
import { queryAware } from "./query-aware.js";

/** Settings of SQuat. */
export interface SquatOptions extends KiviOptions {
  /** Directions of the queries that count. Default 60, as in its scripts. */
  rank?: number;
  /** How much errors along them weigh. Default 0.001. */
  lambda?: number;
  /** Channels that are rounded together. Default: half a head, which is SQuat's 64 of 128. */
  channels?: number;
}

/**
 * SQuat: KIVI with keys rounded some channels at a time, later ones making up for the errors of earlier ones, as far as
 * queries see them. The queries are those that came before the first tokens leave the window: those of a prompt,
 * where it comes at once. 2 bits and a residual of 32 by default.
 *
 * Source: arXiv 2503.24358 and its code (Red-Hat-AI-Innovation-Team/SQuat). Keys and queries are both after RoPE here.
 */
export function squat(options: SquatOptions = {}): Method {
  const parts = kiviParts("squat", "SQuat, arXiv 2503.24358", { residual: 32, ...options });
  const { group = 32, channels } = options;
  const rank = checkInteger("squat: rank", options.rank ?? 60, 1, 65_536);
  if (channels !== undefined) checkInteger("squat: channels", channels, 1, 65_536);
  const lambda: unknown = options.lambda ?? 0.001;
  if (typeof lambda !== "number" || !(lambda >= 0 && lambda <= 1e6)) {
    throw new KvarnError("invalid-argument", `squat: lambda must be from 0 to 1e6, got ${describe(lambda)}`);
  }
  return compose({
    ...parts,
    needs: { ...parts.needs, queries: true },
    keys: ({ headDim, queries }) =>
      queryAware(queries!, {
        rank,
        lambda,
        channels: blockOf(headDim, channels),
        inner: affine({ bits: parts.keyBits, axis: "channel", group }),
      }),
  });
}

function blockOf(headDim: number, channels = headDim / 2): number {
  if (Number.isInteger(headDim / channels) && Number.isInteger(channels)) return channels;
  throw new KvarnError(
    "unsupported-head-dim",
    `squat: headDim must be a multiple of channels (${channels}), got ${headDim}`,
  );
}
