/** Times what is compared, in the units of a case. */
import type { Case, Entrant } from "./cases.js";
import type { Line } from "./report.js";
import { type Effort, race } from "./timing.js";

/**
 * Times who takes part in a case, one round after another.
 * @returns a line of each, the first with the case's targets
 */
export async function timeEntrants(
  one: Omit<Case, "prepare">,
  entrants: readonly Entrant[],
  effort: Effort,
): Promise<Line[]> {
  const result = await race(
    entrants.map(({ contender }) => contender),
    effort,
  );
  const units = one.unit.startsWith("ns") ? 1e6 : 1e3;
  const value = (i: number) => (units * result.ms(i)) / entrants[i].perCall;
  const baselines = entrants.map((_, i) => i).filter((i) => entrants[i].isBaseline);
  const baseline = baselines.reduce((best, i) => (value(i) < value(best) ? i : best));
  return entrants.map(({ backend, variant, perCall }, i): Line => {
    const longer = (result.ratio(i, baseline) * entrants[baseline].perCall) / perCall;
    const { name, case: of, unit, ratioUnit, gate, aim } = one;
    return {
      ...{ name, backend, variant, case: of, value: value(i), unit, baseline: value(baseline) },
      ratio: ratioUnit === "x speed" ? 1 / longer : longer,
      ...{ against: entrants[baseline].label, ratioUnit },
      ...(i === 0 && { gate, aim }),
    };
  });
}
