/** Times several ways of doing the same in turn, so that whatever else slows the machine down meets all alike. */

/** Something to time. */
export interface Contender {
  /** One call; `call` counts them, for rotating inputs. */
  run(call: number): void | Promise<unknown>;
  /** Undoes what `run` changed, off the clock; calls are then timed one by one. */
  reset?(): void | Promise<void>;
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

/** What all contenders took. */
export class Race {
  readonly #rounds: readonly (readonly number[])[];

  /** @param rounds milliseconds of one call of each contender, one round after another */
  constructor(rounds: readonly (readonly number[])[]) {
    this.#rounds = rounds;
  }

  /** Milliseconds of one call: the median. */
  ms(contender: number): number {
    return median(this.#rounds.map((round) => round[contender]));
  }

  /** How many times as long one takes as another: the median over rounds. */
  ratio(contender: number, other: number): number {
    return median(this.#rounds.map((round) => round[contender] / round[other]));
  }
}

/** Times contenders round by round. */
export async function race(contenders: readonly Contender[], effort: Effort): Promise<Race> {
  const clocks = contenders.map((contender) => new Clock(contender));
  for (const clock of clocks) await clock.warmUp(effort);
  const rounds: number[][] = [];
  const end = performance.now() + effort.totalMs;
  while (rounds.length < effort.leastSamples || performance.now() < end) {
    const round: number[] = [];
    for (const clock of clocks) round.push(await clock.sample());
    rounds.push(round);
  }
  return new Race(rounds);
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

  async warmUp({ warmUpMs, sampleMs, leastSamples }: Effort): Promise<void> {
    const times: number[] = [];
    const end = performance.now() + warmUpMs;
    do {
      times.push(await this.sample());
    } while (performance.now() < end || times.length < Math.min(3, leastSamples - 1));
    if (this.#contender.reset) return;
    const later = times.slice(times.length >> 1);
    // Not the median: to a clock of whole milliseconds, as Firefox has it, most short calls take none.
    const mean = later.reduce((sum, time) => sum + time, 0) / later.length;
    this.#callsPerSample = Math.max(1, Math.round(sampleMs / Math.max(mean, LEAST_MS)));
  }

  /** Milliseconds of one call. */
  async sample(): Promise<number> {
    await this.#contender.reset?.();
    const calls = this.#callsPerSample;
    const first = this.#calls;
    this.#calls += calls;
    const start = performance.now();
    for (let call = first; call < first + calls; call++) {
      // Awaiting what is no promise would charge a synchronous contender for a turn of the event loop.
      const pending = this.#contender.run(call);
      if (pending) await pending;
    }
    return (performance.now() - start) / calls;
  }
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
