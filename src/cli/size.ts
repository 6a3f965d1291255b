/** `kvarn size`: how much memory a model's cache takes, by preset. */
import { type Command, parseInteger, parseOptions, type Streams, UsageError } from "./command.js";
import {
  formatMebibytes,
  type PresetSize,
  SIZE_TITLES,
  sizeCells,
  type SizeQuestion,
  sizesOf,
  USUAL_PRESETS,
} from "./sizes.js";
import { formatInteger, formatTable } from "./text.js";
import { packageVersion } from "./version.js";

/** What `kvarn size --json` prints. */
export interface SizeReport extends SizeQuestion {
  /** Version of this package. */
  kvarn: string;
  presets: PresetSize[];
}

const help = `Usage: kvarn size --layers N --kv-heads N --head-dim N --tokens N [options]

Says how much memory the cache of a model takes, for each preset, against binary16. The first three
stand in a model's config.json: num_hidden_layers, num_key_value_heads and head_dim (or hidden_size
over num_attention_heads).

Options:
  --layers N          layers that have a cache
  --kv-heads N        key/value heads of a layer
  --head-dim N        elements of a head
  --tokens N          context length
  --preset NAMES      presets, separated by commas
                      (default ${USUAL_PRESETS.join(",")})
  --exact-window N    newest tokens that are never encoded (default 0)
  --json              one JSON object, in bytes
  -h, --help          this text
`;

/** The `size` subcommand. */
export const sizeCommand: Command = {
  name: "size",
  summary: "say how much memory a model's cache takes, by preset",
  help,
  run,
};

async function run(args: string[], { stdout }: Streams): Promise<number> {
  const { values } = parseOptions({
    args,
    options: {
      layers: { type: "string" },
      "kv-heads": { type: "string" },
      "head-dim": { type: "string" },
      tokens: { type: "string" },
      preset: { type: "string", default: USUAL_PRESETS.join(",") },
      "exact-window": { type: "string", default: "0" },
      json: { type: "boolean", default: false },
    },
  });
  const number = (option: Exclude<keyof typeof values, "json">): number => {
    const value = values[option];
    if (value === undefined) throw new UsageError(`--${option} is missing`);
    return parseInteger(option, value);
  };
  const question: SizeQuestion = {
    layers: number("layers"),
    kvHeads: number("kv-heads"),
    headDim: number("head-dim"),
    tokens: number("tokens"),
    exactWindow: number("exact-window"),
  };
  const report = {
    kvarn: packageVersion(),
    ...question,
    presets: sizesOf(question, values.preset.split(",")),
  };
  stdout.write(values.json ? `${JSON.stringify(report, null, 2)}\n` : render(report));
  return 0;
}

function render({ layers, kvHeads, headDim, tokens, exactWindow, presets }: SizeReport): string {
  const window = exactWindow > 0 ? `, newest ${formatInteger(exactWindow)} exact` : "";
  const heads = `${kvHeads} KV head${kvHeads === 1 ? "" : "s"} of ${headDim}`;
  const what = `${layers} layer${layers === 1 ? "" : "s"}, ${heads}, ${formatInteger(tokens)} tokens${window}`;
  const rows = presets.map(sizeCells);
  const column = (i: number) => ({ title: SIZE_TITLES[i], cells: rows.map((row) => row[i]) });
  const table = formatTable([
    { title: "", columns: [column(0)] },
    { title: "MiB", columns: [column(1), column(2), column(3)] },
    { title: "against binary16", columns: [column(4), column(5)] },
  ]);
  return `${what}: ${formatMebibytes(presets[0].f16Bytes)} MiB in binary16\n\n${table}\n`;
}
