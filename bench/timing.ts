/** Times two ways of doing the same in turn, so that whatever else slows the machine down meets both alike. */

/** Something to time. */
export interface Contender {
  /** One call; `call` counts them, for rotating inputs. */
  run(call: number): void | Promise<unknown>;
  /** Undoes what `run` changed, off the clock; calls are then timed one by one. */
  reset?(): void;
}

/** How long to take. */
export interface Effort {
  /** Before the clock starts, for each: engines compile again what runs often. */
  warmUpMs: number;
  /** Short calls are repeated so long for one sample. */
  sampleMs: number;
  /** At least so long, all samples together. */
  totalMs: number;
  /** At least so many samples of each. */
  leastSamples: number;
}

/** Medians, in milliseconds of one call. */
export interface Timing {
  ours: number;
  baseline: number;
  /** Ours over the baseline, the median over pairs of neighbouring samples. */
  relative: number;
}

/** Times ours and the baseline alternately. */
export async function compare(ours: Contender, baseline: Contender, effort: Effort): Promise<Timing> {
  const clocks = [new Clock(ours), new Clock(baseline)];
  for (const clock of clocks) await clock.warmUp(effort);
  const pairs: [number, number][] = [];
  const end = performance.now() + effort.totalMs;
  while (pairs.length < effort.leastSamples || performance.now() < end) {
    pairs.push([await clocks[0].sample(), await clocks[1].sample()]);
  }
  return {
    ours: median(pairs.map(([a]) => a)),
    baseline: median(pairs.map(([, b]) => b)),
    relative: median(pairs.map(([a, b]) => a / b)),
  };
}

/** What a call takes at least, where the clock was too coarse to tell. */
const LEAST_MS = 1e-3;

class Clock {
  readonly #contender: Contender;
  #calls = 0;
  #callsPerSample = 1;

  constructor(contender: Contender) {
    this.#contender = contender;
  }

  async warmUp({ warmUpMs, sampleMs }: Effort): Promise<void> {
    const times: number[] = [];
    const end = performance.now() + warmUpMs;
    do {
      times.push(await this.sample());
    } while (performance.now() < end || times.length < 3);
    if (this.#contender.reset) return;
    const later = times.slice(times.length >> 1);
    // Not the median: to a clock of whole milliseconds, as Firefox has it, most short calls take none.
    const mean = later.reduce((sum, time) => sum + time, 0) / later.length;
    this.#callsPerSample = Math.max(1, Math.round(sampleMs / Math.max(mean, LEAST_MS)));
  }

  /** Milliseconds of one call. */
  async sample(): Promise<number> {
    this.#contender.reset?.();
    const calls = this.#callsPerSample;
    const first = this.#calls;
    this.#calls += calls;
    const start = performance.now();
    for (let call = first; call < first + calls; call++) {
      // Awaiting what is no promise would charge the synchronous baseline for a turn of the event loop.
      const pending = this.#contender.run(call);
      if (pending) await pending;
    }
    return (performance.now() - start) / calls;
  }
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
