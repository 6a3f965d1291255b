/** `kvarn report FILE`: what compression makes of a model's KV cache. */
import { readFile } from "node:fs/promises";
import { DEFAULT_ITERATIONS } from "../config.js";
import { type BackendInfo, openKvarn, type OpenOptions } from "../index.js";
import { DEFAULT_PRESET } from "../format.js";
import { type Command, InputError, parseInteger, parseOptions, type Streams, UsageError } from "./command.js";
import { readDump } from "./dump.js";
import { PROMPT_CHUNK } from "./feed.js";
import { countWork, LONG_CONTEXT, measure, type MeasureOptions, type Measurement } from "./measure.js";
import { startProgress } from "./progress.js";
import { renderReport } from "./render.js";
import { packageVersion } from "./version.js";

/** What `kvarn report --json` prints; `docs/report.md` describes it. */
export interface Report extends MeasureOptions, Measurement {
  /** Version of this package. */
  kvarn: string;
  file: string;
  /** Tensors of the file that are no layer's k, v or q. */
  ignoredTensors: readonly string[];
  backend: BackendInfo;
  /** Tokens of the prompt that are appended at once. */
  promptChunk: number;
  /** The context length of the figures that are named so. */
  longContext: number;
}

const help = `Usage: kvarn report FILE [options]

Feeds the keys and values of a model to a compressed cache as an engine would: the prompt in chunks
of ${PROMPT_CHUNK} tokens, then token by token, attending with the queries of these tokens. Prints, per layer and
in total, how small the cache gets, what error that costs, and how long it takes.

FILE is a safetensors file (F32, F16 or BF16) that holds for each layer i, after RoPE:
  layers.{i}.k   [tokens, kvHeads, headDim]
  layers.{i}.v   the same
  layers.{i}.q   [queryTokens, queryHeads, headDim], the queries of the last queryTokens tokens;
                 may be missing: then there are no figures about attention
Layer numbers may have gaps, and layers may differ in shape. Other tensors are ignored.

Options:
  --preset NAME       k{bits}v{bits}_g{64|128}, bits one of 2, 3, 4, 5, 6, 8 (default ${DEFAULT_PRESET})
  --iterations N      steps of the normalization, 0 to 64 (default ${DEFAULT_ITERATIONS})
  --exact-window N    newest tokens that are never encoded (default 0)
  --backend NAME      auto, webgpu, wasm or reference (default auto)
  --variant NAME      which build of the backend; kvarn doctor lists them
  --allow-software-adapter
                      let webgpu take a GPU adapter that computes on the CPU
  --json              one JSON object with all figures, as docs/report.md describes it
  -h, --help          this text
`;

/** The `report` subcommand. */
export const reportCommand: Command = {
  name: "report",
  summary: "measure size, error and speed on a model's K and V",
  help,
  run,
};

async function run(args: string[], streams: Streams): Promise<number> {
  const { file, json, open, options } = parse(args);
  const report = await makeReport(file, open, options, streams);
  streams.stdout.write(json ? `${JSON.stringify(report, null, 2)}\n` : renderReport(report));
  return 0;
}

interface ReportArguments {
  file: string;
  json: boolean;
  open: OpenOptions;
  options: MeasureOptions;
}

function parse(args: string[]): ReportArguments {
  const { values, positionals } = parseOptions({
    args,
    allowPositionals: true,
    options: {
      preset: { type: "string", default: DEFAULT_PRESET },
      iterations: { type: "string", default: String(DEFAULT_ITERATIONS) },
      "exact-window": { type: "string", default: "0" },
      backend: { type: "string", default: "auto" },
      variant: { type: "string" },
      "allow-software-adapter": { type: "boolean", default: false },
      json: { type: "boolean", default: false },
    },
  });
  if (positionals.length !== 1) throw new UsageError(`report takes one FILE, got ${positionals.length}`);
  return {
    file: positionals[0],
    json: values.json,
    // Not checked here: openKvarn knows which backends there are.
    open: {
      backend: values.backend as OpenOptions["backend"],
      variant: values.variant,
      allowSoftwareAdapter: values["allow-software-adapter"],
    },
    options: {
      preset: values.preset,
      iterations: parseInteger("iterations", values.iterations),
      exactWindow: parseInteger("exact-window", values["exact-window"]),
    },
  };
}

async function makeReport(
  file: string,
  open: OpenOptions,
  options: MeasureOptions,
  streams: Streams,
): Promise<Report> {
  const { layers, ignored } = readDump(await readBytes(file));
  const kvarn = await openKvarn(open);
  const progress = startProgress(streams, countWork(layers));
  try {
    const measurement = await measure(kvarn, layers, options, () => progress.step());
    const { backend } = kvarn;
    return {
      ...{ kvarn: packageVersion(), file, ignoredTensors: ignored, backend },
      ...{ ...options, promptChunk: PROMPT_CHUNK, longContext: LONG_CONTEXT },
      ...measurement,
    };
  } finally {
    progress.stop();
    kvarn.dispose();
  }
}

async function readBytes(file: string): Promise<Uint8Array> {
  try {
    return await readFile(file);
  } catch (error) {
    // Node's "ENOENT: no such file or directory, open 'x'" names the file once more.
    const message = (error as Error).message.replace(/^[A-Z]+: (.*), \w+.*$/, "$1");
    throw new InputError(`cannot read ${file}: ${message}`, { cause: error });
  }
}
