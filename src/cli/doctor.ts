/** `kvarn doctor`: what runs here, and why not the rest. */
import type { BackendKind } from "../backend.js";
import { type BackendInfo, openKvarn } from "../index.js";
import type { Kvarn } from "../kvarn.js";
import { type AdapterInfo, nameOf } from "../webgpu/index.js";
import { CANDIDATES } from "./candidates.js";
import { type Command, parseOptions, type Streams } from "./command.js";
import { inspectRuntime, type RuntimeInfo } from "./runtime.js";
import { type SelfCheck, selfCheck } from "./self-check.js";
import { wrap } from "./text.js";
import { packageVersion } from "./version.js";

/** A backend's variant, tried. */
export interface Diagnosis {
  kind: BackendKind;
  variant: string;
  /** Whether it opened and passed its check. */
  runs: boolean;
  /** null where it did not get that far. */
  check: SelfCheck | null;
  /** Why it does not run; null where it does. */
  problem: string | null;
  /** The GPU adapter that it ran on. */
  adapter?: AdapterInfo;
}

/** What `kvarn doctor --json` prints. */
export interface DoctorReport extends RuntimeInfo {
  /** Version of this package. */
  kvarn: string;
  backends: Diagnosis[];
  /** What `openKvarn()` takes here, and why. */
  auto: BackendInfo;
}

const help = `Usage: kvarn doctor [options]

Says what this runtime is, opens every backend and variant that there is, checks each one's results on
a small cache, and says why the others do not run and which one "auto" takes.

Options:
  --json        one JSON object
  -h, --help    this text

The exit status is 1 when the one that "auto" takes fails its check.
`;

/** The `doctor` subcommand. */
export const doctorCommand: Command = {
  name: "doctor",
  summary: "try every backend, and say why one does not run",
  help,
  run,
};

async function run(args: string[], { stdout }: Streams): Promise<number> {
  const { values } = parseOptions({ args, options: { json: { type: "boolean", default: false } } });
  const report = await diagnose();
  stdout.write(values.json ? `${JSON.stringify(report, null, 2)}\n` : render(report));
  const { kind, variant } = report.auto;
  const failed = report.backends.some(
    (tried) => tried.kind === kind && tried.variant === variant && !tried.runs,
  );
  return failed ? 1 : 0;
}

async function diagnose(): Promise<DoctorReport> {
  const reference = await openKvarn({ backend: "reference" });
  const backends: Diagnosis[] = [];
  for (const { kind, variant } of CANDIDATES) backends.push(await tryVariant(kind, variant, reference));
  reference.dispose();
  const auto = await openKvarn();
  auto.dispose();
  return {
    kvarn: packageVersion(),
    ...inspectRuntime(),
    backends,
    auto: auto.backend,
  };
}

async function tryVariant(kind: BackendKind, variant: string, reference: Kvarn): Promise<Diagnosis> {
  try {
    const engine = await openKvarn({ backend: kind, variant, allowSoftwareAdapter: true });
    const { adapter } = engine.backend;
    try {
      const check = await selfCheck(engine, reference);
      const problem = check.passed ? null : "it computes wrong results here";
      return { kind, variant, runs: check.passed, check, problem, ...(adapter && { adapter }) };
    } finally {
      engine.dispose();
    }
  } catch (error) {
    // Whatever it is that stops a backend is the answer here.
    return { kind, variant, runs: false, check: null, problem: (error as Error).message };
  }
}

function render(report: DoctorReport): string {
  const { runtime, version, engine, platform, arch, cpu, cores, features, backends, auto } = report;
  const yes = (has: boolean): string => (has ? "yes" : "no");
  const line = (title: string, text: string): string => `${title.padEnd(9)}${text}`;
  const names = { node: "Node", deno: "Deno", bun: "Bun" };
  const lines = [
    line("kvarn", report.kvarn),
    line("runtime", `${names[runtime]} ${version} (${engine})`),
    line("machine", `${platform} ${arch}, ${cores} core${cores === 1 ? "" : "s"}, ${cpu}`),
    line("wasm", `simd128: ${yes(features.simd128)}, relaxed SIMD: ${yes(features.relaxedSimd)}`),
    line("types", `Float16Array: ${yes(features.float16Array)}`),
    "",
    ...backends.map(renderDiagnosis),
    "",
    wrap(`auto takes ${auto.kind} ${auto.variant}: ${auto.reason}`),
  ];
  return `${lines.join("\n")}\n`;
}

function renderDiagnosis({ kind, variant, runs, check, problem, adapter }: Diagnosis): string {
  const on = adapter ? ` on ${nameOf(adapter)}${adapter.software ? ", software" : ""}` : "";
  const figures = check
    ? ` (attention off by ${check.outputDifference.toExponential(1)}, ` +
      `encoding error ${check.errorGrowth.toFixed(3)} times the reference's)`
    : "";
  return wrap(`${kind} ${variant}: ${runs ? `runs${on}` : `does not run: ${problem}`}${figures}`);
}
