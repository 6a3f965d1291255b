/** How far records, or numbers, may differ. */
import type { RecordLayout } from "../format.js";
import { decodeTile, readRecord, type StoredTile } from "./record.js";

/** `|actual - expected| / |expected|`, L2. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i] - expected[i]) ** 2;
    norm += expected[i] ** 2;
  }
  return difference === 0 ? 0 : Math.sqrt(difference / norm);
}

/** How one side, K or V, of some records differs. */
export interface SideComparison {
  readonly bits: number;
  readonly codes: number;
  readonly codesDiffering: number;
  readonly maxCodeDifference: number;
  /**
   * Largest error of a scale after the tile's common factor is taken out, in units of what is allowed (2^-9 relative
   * or one binary16 step, whichever is more): above 1 fails.
   */
  readonly worstScaleError: number;
  /** Which scale that is. */
  readonly worstScale: string;
  /** Relative L2 error of what is decoded, where codes agree; the worst tile. */
  readonly decodedError: number;
}

export interface Comparison {
  readonly keys: SideComparison;
  readonly values: SideComparison;
  /** K and V together: */
  readonly codes: number;
  readonly codesDiffering: number;
  readonly maxCodeDifference: number;
  readonly worstScaleError: number;
}

/**
 * Compares records of one layout, one or more.
 * @param actual what a backend made
 * @param expected the golden records, or another backend's
 */
export function compareRecords(actual: Uint8Array, expected: Uint8Array, layout: RecordLayout): Comparison {
  if (actual.length !== expected.length || actual.length % layout.bytes !== 0 || actual.length === 0) {
    throw new Error(
      `records of ${actual.length} bytes against ${expected.length}; a record is ${layout.bytes} bytes`,
    );
  }
  const keys: SideComparison[] = [];
  const values: SideComparison[] = [];
  for (let start = 0; start < actual.length; start += layout.bytes) {
    const ours = readRecord(actual.subarray(start, start + layout.bytes), layout);
    const theirs = readRecord(expected.subarray(start, start + layout.bytes), layout);
    const name = `record ${start / layout.bytes}`;
    keys.push(compareTiles(ours.keys, theirs.keys, layout.keyBits, name));
    values.push(compareTiles(ours.values, theirs.values, layout.valueBits, name));
  }
  const k = keys.reduce(merge);
  const v = values.reduce(merge);
  return {
    keys: k,
    values: v,
    codes: k.codes + v.codes,
    codesDiffering: k.codesDiffering + v.codesDiffering,
    maxCodeDifference: Math.max(k.maxCodeDifference, v.maxCodeDifference),
    worstScaleError: Math.max(k.worstScaleError, v.worstScaleError),
  };
}

/** Throws, saying in what, unless `actual` conforms to `expected`; returns the comparison. */
export function expectConforms(
  actual: Uint8Array,
  expected: Uint8Array,
  layout: RecordLayout,
  name = "records",
): Comparison {
  const comparison = compareRecords(actual, expected, layout);
  const sides = [comparison.keys, comparison.values];
  const failures: string[] = [];

  // Codes of K and V are counted together where one tolerance holds for both.
  const classes = [
    { title: "codes of at most 4 bits", members: sides.filter(({ bits }) => bits <= 4), rate: 10_000 },
    { title: "codes of more than 4 bits", members: sides.filter(({ bits }) => bits > 4), rate: 1_000 },
  ];
  for (const { title, members, rate } of classes) {
    const codes = members.reduce((total, side) => total + side.codes, 0);
    const differing = members.reduce((total, side) => total + side.codesDiffering, 0);
    const allowed = Math.max(2, codes / rate);
    if (differing > allowed) {
      failures.push(`${differing} of ${codes} ${title} differ, allowed are ${Math.floor(allowed)}`);
    }
  }
  sides.forEach((side, i) => {
    const tensor = i === 0 ? "K" : "V";
    if (side.maxCodeDifference > 1) failures.push(`a code of ${tensor} differs by ${side.maxCodeDifference}`);
    if (!(side.worstScaleError <= 1)) {
      failures.push(
        `${side.worstScale} is off by ${side.worstScaleError.toPrecision(3)} times what is allowed`,
      );
    }
    if (!(side.decodedError <= 2e-3)) {
      failures.push(
        `${tensor} decodes to something ${side.decodedError.toPrecision(3)} off, allowed are 0.002`,
      );
    }
  });
  if (failures.length > 0) throw new Error(`${name}: ${failures.join("; ")}`);
  return comparison;
}

function compareTiles(actual: StoredTile, expected: StoredTile, bits: number, name: string): SideComparison {
  let codesDiffering = 0;
  let maxCodeDifference = 0;
  actual.codes.forEach((code, i) => {
    const difference = Math.abs(code - expected.codes[i]);
    if (difference > 0) codesDiffering++;
    maxCodeDifference = Math.max(maxCodeDifference, difference);
  });

  const agrees = (_: number, i: number) => actual.codes[i] === expected.codes[i];
  const decodedError = relativeError(decodeTile(actual).filter(agrees), decodeTile(expected).filter(agrees));
  const { worst, where } = compareScales(actual, expected);
  return {
    bits,
    codes: actual.codes.length,
    codesDiffering,
    maxCodeDifference,
    worstScaleError: worst,
    worstScale: `${where} of ${name}`,
    decodedError,
  };
}

function merge(a: SideComparison, b: SideComparison): SideComparison {
  const worse = b.worstScaleError > a.worstScaleError ? b : a;
  return {
    bits: a.bits,
    codes: a.codes + b.codes,
    codesDiffering: a.codesDiffering + b.codesDiffering,
    maxCodeDifference: Math.max(a.maxCodeDifference, b.maxCodeDifference),
    worstScaleError: worse.worstScaleError,
    worstScale: worse.worstScale,
    decodedError: Math.max(a.decodedError, b.decodedError),
  };
}

/**
 * Row scales times f and column scales over f make the same tile, and on some tiles rounding noise picks f. So the
 * one best factor is taken out first: none, or the median ratio of column scales, which never come near zero.
 */
function compareScales(actual: StoredTile, expected: StoredTile): { worst: number; where: string } {
  const ratios = actual.column.map((x, i) => expected.column[i] / x).sort();
  const factors = [1, ratios[ratios.length >> 1]];
  const results = factors.map((factor) => {
    let worst = 0;
    let where = `${actual.names.column}[0]`;
    const check = (field: "scale" | "zero" | "column", fieldFactor: number) =>
      actual[field].forEach((x, i) => {
        const error = scaleError(x, expected[field][i], fieldFactor);
        if (!(error <= worst)) [worst, where] = [error, `${actual.names[field]}[${i}]`];
      });
    check("column", factor);
    check("scale", 1 / factor);
    check("zero", 1 / factor);
    return { worst, where };
  });
  return results[1].worst < results[0].worst ? results[1] : results[0];
}

/** Distance of `actual * factor` from `expected` in units of what is allowed. */
function scaleError(actual: number, expected: number, factor: number): number {
  if (!Number.isFinite(actual)) return Infinity;
  const allowed = Math.max(Math.abs(expected) * 2 ** -9, halfStep(expected), halfStep(actual) * factor);
  return Math.abs(actual * factor - expected) / allowed;
}

/** Distance of neighbouring binary16 numbers at `x`. */
function halfStep(x: number): number {
  return 2 ** (Math.max(-14, Math.floor(Math.log2(Math.abs(x)))) - 10);
}
