/** `kvarn conformance`: does every backend here compute what the method says? */
import type { BackendKind } from "../backend.js";
import { adapterOf } from "../conformance/kvarn.js";
import { type CheckResult, type ConformanceReport, SUBJECTS } from "../conformance/report.js";
import { runConformance } from "../conformance/run.js";
import { openKvarn } from "../index.js";
import { type AdapterInfo, nameOf } from "../webgpu/index.js";
import { type Candidate, CANDIDATES } from "./candidates.js";
import { type Command, parseOptions, type Streams, UsageError } from "./command.js";
import { type ColumnGroup, formatTable, wrap } from "./text.js";
import { packageVersion } from "./version.js";

/** What came of a backend's variant. */
export interface BackendConformance {
  kind: BackendKind;
  variant: string;
  /** null where it does not open. */
  report: ConformanceReport | null;
  /** Why it does not open; null where it does. */
  problem: string | null;
  /** The GPU adapter that it ran on. */
  adapter?: AdapterInfo;
}

/** What `kvarn conformance --json` prints. */
export interface ConformanceResult {
  /** Version of this package. */
  kvarn: string;
  backends: BackendConformance[];
}

const help = `Usage: kvarn conformance [options]

Runs the conformance suite on every backend and variant that runs here, GPUs of software included:
records made by KVarN's vLLM implementation, and every step of the method and lives of caches against
results of the reference backend. conformance/README.md has the same data for other languages.

Options:
  --backend NAME   webgpu, wasm or reference alone; must run then
  --json           one JSON object
  -h, --help       this text

The exit status is 1 when a check fails.
`;

const OPTIONS = {
  backend: { type: "string" },
  json: { type: "boolean", default: false },
} as const;

/** The `conformance` subcommand. */
export const conformanceCommand: Command = {
  name: "conformance",
  summary: "check every backend against the method's golden records",
  help,
  run,
};

async function run(args: string[], { stdout }: Streams): Promise<number> {
  const { backend, json } = parseOptions({ args, options: OPTIONS }).values;
  const candidates = CANDIDATES.filter(({ kind }) => backend === undefined || kind === backend);
  if (candidates.length === 0) {
    throw new UsageError(`--backend takes webgpu, wasm or reference, got '${backend}'`);
  }
  const backends: BackendConformance[] = [];
  for (const candidate of candidates) backends.push(await check(candidate));
  const result: ConformanceResult = { kvarn: packageVersion(), backends };
  stdout.write(json ? `${JSON.stringify(result, null, 2)}\n` : render(backends));
  const reports = backends.flatMap(({ report }) => report ?? []);
  return reports.length > 0 && reports.every(({ passed }) => passed) ? 0 : 1;
}

async function check({ kind, variant }: Candidate): Promise<BackendConformance> {
  let engine;
  try {
    engine = await openKvarn({ backend: kind, variant, allowSoftwareAdapter: true });
  } catch (error) {
    // Whatever it is that stops a backend is the answer here.
    return { kind, variant, report: null, problem: (error as Error).message };
  }
  try {
    const { adapter } = engine.backend;
    const report = await runConformance(adapterOf(engine));
    return { kind, variant, report, problem: null, ...(adapter && { adapter }) };
  } finally {
    engine.dispose();
  }
}

function render(backends: readonly BackendConformance[]): string {
  const ran = backends.flatMap((backend) => (backend.report ? { ...backend, report: backend.report } : []));
  const parts: string[] = [];
  if (ran.length > 0) {
    const names = { title: "backend", cells: ran.map(({ kind, variant }) => `${kind} ${variant}`) };
    const subjects = SUBJECTS.map((subject) => ({
      title: subject,
      cells: ran.map(({ report }) => cell(report.checks.filter((one) => one.subject === subject))),
    }));
    const groups: ColumnGroup[] = [
      { title: "", columns: [names] },
      { title: "checks passed", columns: subjects },
    ];
    parts.push(formatTable(groups));
  }
  const lines = backends.flatMap(({ kind, variant, report, problem, adapter }) => {
    const name = `${kind} ${variant}`;
    if (!report) return [`${name} does not run: ${problem}`];
    const on = adapter ? [`${name} ran on ${nameOf(adapter)}${adapter.software ? ", software" : ""}`] : [];
    const others = report.checks.filter(({ status }) => status !== "passed");
    return [
      ...on,
      ...others.map((one) => `${name}: ${one.subject}, ${one.name}: ${one.status}: ${one.detail}`),
    ];
  });
  if (lines.length > 0) parts.push(lines.map((line) => wrap(line)).join("\n"));
  const total = ran.flatMap(({ report }) => report.checks);
  const count = (status: CheckResult["status"]): number =>
    total.filter((one) => one.status === status).length;
  const missing = count("not covered");
  const uncovered = missing > 0 ? `, ${missing} not covered` : "";
  parts.push(`${count("passed")} passed, ${count("failed")} failed${uncovered}`);
  return `${parts.join("\n\n")}\n`;
}

/** How many of some checks passed: `9`, or `7 of 9`. */
function cell(checks: readonly CheckResult[]): string {
  const passed = checks.filter(({ status }) => status === "passed").length;
  return passed === checks.length ? String(passed) : `${passed} of ${checks.length}`;
}
