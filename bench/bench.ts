/** `npm run bench`: one harness, one table. */
import { parseOptions, type Streams, UsageError } from "../src/cli/command.js";
import { formatNumber, formatTable, wrap } from "../src/cli/text.js";
import { type Kvarn, type OpenOptions, openKvarn } from "../src/index.js";
import { type Case, cases, type Figures, type Scale, type Target } from "./cases.js";
import { FULL_GPU, type GpuResult, QUICK_GPU, runGpuCases } from "./webgpu/cases.js";

/** One line of what `--json` prints. */
export interface BenchResult {
  name: string;
  backend: string;
  variant: string;
  case: string;
  value: number;
  unit: string;
  /** What ours was compared with in the same run, in the same unit. */
  baseline: number;
  /** Plain SIMD passes that ours takes as long as; of `attend` and `append` the baseline's time over ours. */
  ratio: number;
}

const FULL: Scale = {
  effort: { warmUpMs: 300, sampleMs: 2, totalMs: 2_500, leastSamples: 15 },
  mostTokens: Infinity,
};

const QUICK: Scale = {
  effort: { warmUpMs: 0, sampleMs: 0, totalMs: 0, leastSamples: 1 },
  mostTokens: 300,
};

const help = `Usage: npm run bench -- [options]

Times the public calls, by default on one thread, in turn with what they are compared with: one plain SIMD pass over
the same f32 data (scale, sum, sum of squares), or attention over an uncompressed f32 cache, both as fast
as we could make them. Medians; ratios are medians over pairs of neighbouring samples.

With --backend webgpu, by the GPU's own clock: attention of one token, sink and tail included, against our
own attention over a binary16 cache, and both and encoding against their bytes at the rate of a copy.

Options:
  --case SUBSTRING   only cases whose name and description contain it, such as 'attend' or 't32768'
  --backend NAME     auto (default), webgpu, wasm or reference
  --variant NAME     strict, relaxed, strict-f32 or relaxed-f32 of wasm; default: what auto takes
  --threads N        of wasm; default 1, as the baseline has
  --json             a list of { name, backend, variant, case, value, unit, baseline, ratio }, nothing else
  --check            exit with 1 when a gate is missed
  --quick            one sample over short contexts: shows that it runs, measures nothing
  -h, --help         this text

`;

const OPTIONS = {
  case: { type: "string", default: "" },
  backend: { type: "string", default: "auto" },
  variant: { type: "string" },
  threads: { type: "string", default: "1" },
  json: { type: "boolean", default: false },
  check: { type: "boolean", default: false },
  quick: { type: "boolean", default: false },
  help: { type: "boolean", short: "h", default: false },
} as const;

/**
 * Runs the benchmarks that a command line asks for.
 * @param args without the program's name
 * @returns the exit status
 * @throws {UsageError} when the command line is wrong
 * @throws {KvarnError} as `openKvarn`
 */
export async function runBench(args: string[], { stdout, stderr }: Streams): Promise<number> {
  const { values } = parseOptions({ args, options: OPTIONS });
  if (values.help) {
    stdout.write(help);
    return 0;
  }
  if (values.backend === "webgpu") {
    const { adapter, results } = await runGpuCases(values.quick ? QUICK_GPU : FULL_GPU, (name) => {
      if (stderr.isTTY) stderr.write(`\r\x1b[K${name}`);
    });
    if (stderr.isTTY) stderr.write("\r\x1b[K");
    const common = { backend: "webgpu", variant: "f32" };
    stdout.write(
      values.json
        ? `${JSON.stringify(
            results.map((result) => ({ ...common, ...result })),
            null,
            2,
          )}\n`
        : renderGpu(adapter, results),
    );
    return 0;
  }
  const chosen = cases.filter((one) => title(one).includes(values.case));
  if (chosen.length === 0) throw new UsageError(`no case contains '${values.case}'`);
  const kvarn = await openKvarn({
    backend: values.backend as OpenOptions["backend"],
    variant: values.variant,
    threads: Number(values.threads),
  });
  const scale = values.quick ? QUICK : FULL;
  const done: { one: Case; figures: Figures }[] = [];
  for (const one of chosen) {
    if (stderr.isTTY) stderr.write(`\r\x1b[K${title(one)}`);
    done.push({ one, figures: await one.run(kvarn, scale) });
  }
  if (stderr.isTTY) stderr.write("\r\x1b[K");
  const { kind: backend, variant } = kvarn.backend;
  if (values.json) {
    const results: BenchResult[] = done.map(({ one, figures: { value, baseline, ratio } }) => {
      return { name: one.name, backend, variant, case: one.case, value, unit: one.unit, baseline, ratio };
    });
    stdout.write(`${JSON.stringify(results, null, 2)}\n`);
  } else {
    stdout.write(render(kvarn, done));
  }
  kvarn.dispose();
  const missed = done.some(({ one, figures }) => one.gate && !reaches(figures.ratio, one.gate));
  return values.check && missed ? 1 : 0;
}

function renderGpu(adapter: string, results: readonly GpuResult[]): string {
  const column = (name: string, cell: (result: GpuResult) => string) => {
    return { title: name, cells: results.map(cell) };
  };
  const titles = results.map((one) => `${one.name} ${one.case}`);
  const width = Math.max(...titles.map(({ length }) => length));
  const table = formatTable([
    { title: "", columns: [{ title: "", cells: titles.map((text) => text.padEnd(width)) }] },
    {
      title: "",
      columns: [
        column("ours", ({ value }) => formatNumber(value)),
        column("baseline", ({ baseline }) => formatNumber(baseline)),
        column("", ({ unit }) => unit),
        column("x speed", ({ ratio }) => formatNumber(ratio)),
        column("of", ({ against }) => against),
      ],
    },
  ]);
  return `webgpu f32 on ${adapter}\n\n${table}\n`;
}

function title(one: Case): string {
  return `${one.name} ${one.case}`;
}

function reaches(ratio: number, target: Target): boolean {
  return "most" in target ? ratio <= target.most : ratio >= target.least;
}

function render(kvarn: Kvarn, done: readonly { one: Case; figures: Figures }[]): string {
  const { kind, variant, reason } = kvarn.backend;
  const column = (name: string, cell: (one: Case, figures: Figures) => string) => {
    return { title: name, cells: done.map(({ one, figures }) => cell(one, figures)) };
  };
  const target = (name: string, pick: (one: Case) => Target | undefined) =>
    column(name, (one, { ratio }) => judge(ratio, pick(one)));
  const width = Math.max(...done.map(({ one }) => title(one).length));
  const table = formatTable([
    { title: "", columns: [column("", (one) => title(one).padEnd(width))] },
    {
      title: "",
      columns: [
        column("ours", (_, { value }) => formatNumber(value)),
        column("baseline", (_, { baseline }) => formatNumber(baseline)),
        column("", ({ unit }) => unit),
      ],
    },
    {
      title: "ratio",
      columns: [
        column("", (_, { ratio }) => formatNumber(ratio)),
        column("", (one) => one.ratio),
        target("gate", ({ gate }) => gate),
        target("aim", ({ aim }) => aim),
      ],
    },
  ]);
  return `${wrap(`${kind} ${variant}: ${reason}`)}\n\n${table}\n`;
}

/** A target and whether it is reached. */
function judge(ratio: number, target: Target | undefined): string {
  if (!target) return "";
  const bound = "most" in target ? `<= ${target.most}` : `>= ${target.least}`;
  return `${bound} ${reaches(ratio, target) ? "pass" : "FAIL"}`;
}
