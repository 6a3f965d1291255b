/** What all tasks say of one setting. */
import type { Entry, ForcedResult, Results } from "./results.js";
import { mean } from "./mean.js";
import { compareSettings, labelOf, type Setting } from "./settings.js";

export interface Summary {
  readonly setting: Setting;
  readonly label: string;
  /** Means over texts, each as in {@link ForcedResult}; null where there is nothing. */
  readonly compressedBits: number | null;
  readonly key: number | null;
  readonly value: number | null;
  readonly score: number | null;
  readonly output: number | null;
  readonly worstNorm: number | null;
  readonly magnitudeShare: number | null;
  /** Means over tokens after the first {@link WARM_UP}, and then over texts. */
  readonly bits: number;
  readonly kl: number;
  readonly agreement: number;
  /** Perplexity over the same tokens; `exactPerplexity`: without compression. */
  readonly perplexity: number;
  readonly exactPerplexity: number;
  /** Errors of attention outputs over the last quarter of the texts, as shares of the outputs. */
  readonly staticError: number;
  readonly accumulatedError: number;
  /** Steps until greedy decoding takes another token, of each text; null: not within `steps`. */
  readonly divergence: readonly (number | null)[];
  readonly steps: number;
  /** Bits for an element of K or V at their end. */
  readonly greedyBits: number;
  /** Mean divergence over these steps. */
  readonly greedyKl: number;
  /** Right answers by number of lines. */
  readonly lines: readonly LinesSummary[];
}

/** Shares of lines and of digits that were right, and bits for an element of K or V at the end. */
export interface LinesSummary {
  readonly lines: number;
  readonly right: number;
  readonly digits: number;
  readonly bits: number;
}

/** Tokens at a text's beginning: from there on every method has compressed some. No means over them. */
export const WARM_UP = 256;

/** Sums up all settings that have results of every task. */
export function summarize(results: Results): Summary[] {
  const forced = byLabel(results.all("forced"));
  const greedy = byLabel(results.all("greedy"));
  const lines = byLabel(results.all("lines"));
  return [...forced]
    .filter(([label]) => greedy.has(label) && lines.has(label))
    .map(([label, entries]): Summary => {
      const texts = entries.map(({ result }) => result);
      const steps = greedy.get(label)!.map(({ result }) => result);
      const average = (of: (result: ForcedResult) => number | null): number | null => {
        const values = texts.map(of).filter((value) => value !== null);
        return values.length > 0 ? mean(values) : null;
      };
      const late = (of: (result: ForcedResult) => readonly number[]): number =>
        mean(texts.map((text) => mean(afterWarmUp(text, of(text)))));
      return {
        setting: entries[0].setting,
        label,
        compressedBits: average(({ compressedBits }) => compressedBits),
        key: average(({ key }) => key),
        value: average(({ value }) => value),
        score: average(({ score }) => score),
        output: average(({ output }) => output),
        worstNorm: average(({ worstNorm }) => worstNorm),
        magnitudeShare: average(({ magnitudeShare }) => magnitudeShare),
        bits: late(({ bits }) => bits),
        kl: late(({ kl }) => kl),
        agreement: late(({ agreement }) => agreement),
        perplexity: Math.exp(late(({ nll }) => nll)),
        exactPerplexity: Math.exp(late(({ exactNll }) => exactNll)),
        staticError: mean(texts.map((text) => lastQuarter(text.staticError) / lastQuarter(text.outputSize))),
        accumulatedError: mean(
          texts.map((text) => lastQuarter(text.accumulatedError) / lastQuarter(text.outputSize)),
        ),
        divergence: steps.map(({ divergence }) => divergence),
        steps: steps[0].kl.length,
        greedyBits: mean(steps.map(({ bits }) => bits)),
        greedyKl: mean(steps.map(({ kl }) => mean(kl))),
        lines: lines
          .get(label)!
          .map(({ on, result }) => ({
            lines: Number(on),
            right: result.right / result.asked,
            digits: result.rightDigits / result.digits,
            bits: result.bits,
          }))
          .sort((a, b) => a.lines - b.lines),
      };
    })
    .sort((a, b) => compareSettings(a.setting, b.setting));
}

function byLabel<E extends Entry>(entries: readonly E[]): Map<string, E[]> {
  const map = new Map<string, E[]>();
  for (const entry of entries) {
    const label = labelOf(entry.setting);
    map.set(label, [...(map.get(label) ?? []), entry]);
  }
  return map;
}

/** Blocks after the warm-up; all, where the text is no longer. */
function afterWarmUp({ blockTokens }: ForcedResult, blocks: readonly number[]): readonly number[] {
  const late = blocks.slice(WARM_UP / blockTokens);
  return late.length > 0 ? late : blocks;
}

function lastQuarter(blocks: readonly number[]): number {
  return mean(blocks.slice(-Math.ceil(blocks.length / 4)));
}
