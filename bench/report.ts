/** What benchmarks found, and how it is printed. */
import { formatNumber, formatTable, wrap } from "../src/cli/text.js";

/** A bound on a ratio. */
export type Target = { readonly most: number } | { readonly least: number };

/**
 * What a ratio counts: plain SIMD passes that a call takes as long as, how many times the baseline's time it takes, or how
 * many times as fast as the baseline it is.
 */
export type RatioUnit = "passes" | "x time" | "x speed";

/** What a ratio has to reach, and what it is hoped to. */
export interface Targets {
  readonly gate?: Target;
  readonly aim?: Target;
}

/** One line of what `--json` prints. */
export interface BenchResult {
  name: string;
  /** Whose time it is: one of our backends, `uncompressed`, or a peer. */
  backend: string;
  variant: string;
  case: string;
  value: number;
  unit: string;
  /** What the value is compared with, of the same run and in the same unit. */
  baseline: number;
  /** How the two compare; which way depends on the case. */
  ratio: number;
}

/** A line of the table. */
export interface Line extends BenchResult, Targets {
  /** What the baseline is. */
  against: string;
  ratioUnit: RatioUnit;
}

/** All that a run found. */
export interface Report {
  /** The engine and where it ran. */
  title: string;
  lines: Line[];
  /** Peers that did not run, with the reasons. */
  absent: string[];
}

/** The lines as `--json` prints them. */
export function toJson({ lines }: Report): string {
  const results = lines.map(
    ({ name, backend, variant, case: of, value, unit, baseline, ratio }): BenchResult => {
      return { name, backend, variant, case: of, value, unit, baseline, ratio };
    },
  );
  return `${JSON.stringify(results, null, 2)}\n`;
}

/** The lines as a table, and what has to be known beside them. */
export function render({ title, lines, absent }: Report, references: readonly string[]): string {
  const column = (name: string, cell: (line: Line, i: number) => string) => {
    return { title: name, cells: lines.map(cell) };
  };
  const left = (name: string, cell: (line: Line, i: number) => string) => {
    const { cells } = column(name, cell);
    const width = Math.max(...cells.map(({ length }) => length));
    return { title: name.padEnd(width), cells: cells.map((text) => text.padEnd(width)) };
  };
  const target = (name: string, pick: (line: Line) => Target | undefined) =>
    column(name, (line) => judge(line.ratio, pick(line)));
  // The groups have no titles, which stand on a line of their own.
  const [, ...table] = formatTable([
    {
      title: "",
      columns: [
        left("", (line, i) => (i > 0 && titleOf(line) === titleOf(lines[i - 1]) ? "" : titleOf(line))),
      ],
    },
    { title: "", columns: [left("", ({ backend, variant }) => `${backend} ${variant}`)] },
    {
      title: "",
      columns: [column("", ({ value }) => formatNumber(value)), left("", ({ unit }) => unit)],
    },
    {
      title: "",
      columns: [
        column("ratio", ({ ratio }) => formatNumber(ratio)),
        left("", ({ ratioUnit, against }) => `${ratioUnit} of ${against}`),
        target("gate", ({ gate }) => gate),
        target("aim", ({ aim }) => aim),
      ],
    },
  ]).split("\n");
  const notes = [
    ...absent.map((reason) => `Not run: ${reason}`),
    ...references.map((text) => `Measured elsewhere: ${text}`),
  ];
  return [
    wrap(title),
    "",
    ...table,
    ...(notes.length > 0 ? ["", ...notes.map((note) => wrap(note))] : []),
    "",
  ].join("\n");
}

/** Whether a line misses its gate. */
export function misses({ ratio, gate }: Line): boolean {
  return gate !== undefined && !reaches(ratio, gate);
}

/** A case by the name that `--case` looks for. */
export function titleOf({ name, case: of }: { name: string; case: string }): string {
  return `${name} ${of}`;
}

function reaches(ratio: number, target: Target): boolean {
  return "most" in target ? ratio <= target.most : ratio >= target.least;
}

/** A target and whether it is reached. */
function judge(ratio: number, target: Target | undefined): string {
  if (!target) return "";
  const bound = "most" in target ? `<= ${target.most}` : `>= ${target.least}`;
  return `${bound} ${reaches(ratio, target) ? "pass" : "FAIL"}`;
}
