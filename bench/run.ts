/** Runs cases, in a runtime or in a page. */
import { type OpenOptions, openKvarn } from "../src/index.js";
import { cases } from "./cases.js";
import { timeEntrants } from "./compare.js";
import { llamaPeers } from "./peers/llama.js";
import { onnxruntimePeers } from "./peers/onnxruntime.js";
import type { Peer } from "./peers/peer.js";
import { Refusals } from "./peers/refusals.js";
import { type Line, type Report, titleOf } from "./report.js";
import type { Effort } from "./timing.js";
import { runGpuCases } from "./webgpu/run.js";

/** What to run. */
export interface RunOptions {
  /** Cases whose name and description contain it. */
  case: string;
  backend: string;
  variant?: string;
  /** Of wasm. */
  threads: number;
  /** Whether Dawn is to offer matrix units, in Node. */
  matrix: boolean;
  /** One sample over short contexts. */
  quick: boolean;
}

const FULL: Effort = { warmUpMs: 300, sampleMs: 2, totalMs: 2_500, leastSamples: 15 };
const LONG: Effort = { ...FULL, leastSamples: 3 };
const QUICK: Effort = { warmUpMs: 0, sampleMs: 0, totalMs: 0, leastSamples: 1 };
const QUICK_TOKENS = 300;

/**
 * Runs what is asked for.
 * @param progress called with the title of each case before it begins
 * @throws {KvarnError} as `openKvarn`
 */
export async function runCases(options: RunOptions, progress: (title: string) => void): Promise<Report> {
  const isWanted = (one: { name: string; case: string }) => titleOf(one).includes(options.case);
  if (options.backend === "webgpu") return runGpuCases(options, isWanted, progress);
  const chosen = cases.filter(isWanted);
  const { backend, variant, threads } = options;
  const kvarn = await openKvarn({ backend: backend as OpenOptions["backend"], variant, threads });
  const refusals = new Refusals();
  const lines: Line[] = [];
  const peers = [...(await onnxruntimePeers()), ...(await llamaPeers())];
  const mostTokens = options.quick ? QUICK_TOKENS : Infinity;
  for (const one of chosen) {
    progress(titleOf(one));
    const refuse = (peer: Peer, error: unknown) => refusals.add(peer, titleOf(one), error);
    const { entrants, close } = await one.prepare({ kvarn, mostTokens, peers, refuse });
    lines.push(...(await timeEntrants(one, entrants, options.quick ? QUICK : one.isLong ? LONG : FULL)));
    await close?.();
  }
  const { kind, variant: taken, reason } = kvarn.backend;
  kvarn.dispose();
  return { title: `${kind} ${taken}: ${reason}`, lines, absent: refusals.list() };
}
