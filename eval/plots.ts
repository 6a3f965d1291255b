/** The results as pictures. */
import { parse, View } from "vega";
import { compile, type TopLevelSpec } from "vega-lite";
import type { ForcedResult, Results } from "./results.js";
import { bitsOf } from "./settings.js";
import { mean } from "./mean.js";
import type { Summary } from "./summary.js";

/** Bits of K and V of the methods that are compared over length. */
const COMPARED = "k2v2";
const SIZE = { width: 560, height: 320 };
const CONFIG = { background: "white", font: "sans-serif" };

/** SVG files by name. */
export async function drawPlots(
  results: Results,
  summaries: readonly Summary[],
): Promise<Map<string, string>> {
  const compared = new Map<string, ForcedResult[]>();
  for (const { setting, result } of results.all("forced")) {
    if (bitsOf(setting) !== COMPARED) continue;
    compared.set(setting.name, [...(compared.get(setting.name) ?? []), result]);
  }
  return new Map([
    ["error-over-length.svg", await draw(errorOverLength(compared))],
    ["kl-over-length.svg", await draw(klOverLength(compared))],
    ["kl-over-bits.svg", await draw(klOverBits(summaries))],
  ]);
}

/** Errors of attention outputs as shares of the outputs. */
function errorOverLength(compared: ReadonlyMap<string, readonly ForcedResult[]>): TopLevelSpec {
  const values = [...compared].flatMap(([method, texts]) =>
    (["staticError", "accumulatedError"] as const).flatMap((name) =>
      blocksOf(texts).map((block) => ({
        method,
        tokens: (block + 1) * texts[0].blockTokens,
        error: mean(texts.map((text) => text[name][block] / text.outputSize[block])),
        past: name === "staticError" ? "static" : "accumulated",
      })),
    ),
  );
  return {
    ...SIZE,
    title: "Error of attention outputs, 2 bits",
    data: { values },
    mark: "line",
    encoding: {
      x: { field: "tokens", type: "quantitative", title: "tokens" },
      y: { field: "error", type: "quantitative", title: "mean error / mean output" },
      color: { field: "method", type: "nominal" },
      strokeDash: {
        field: "past",
        type: "nominal",
        title: "keys and values",
        sort: ["accumulated", "static"],
      },
    },
  };
}

function klOverLength(compared: ReadonlyMap<string, readonly ForcedResult[]>): TopLevelSpec {
  const values = [...compared].flatMap(([method, texts]) =>
    blocksOf(texts).map((block) => ({
      method,
      tokens: (block + 1) * texts[0].blockTokens,
      kl: mean(texts.map((text) => text.kl[block])),
    })),
  );
  return {
    ...SIZE,
    title: "Divergence from the exact run, 2 bits",
    data: { values },
    mark: "line",
    encoding: {
      x: { field: "tokens", type: "quantitative", title: "tokens" },
      y: { field: "kl", type: "quantitative", title: "KL, nats" },
      color: { field: "method", type: "nominal" },
    },
  };
}

function klOverBits(summaries: readonly Summary[]): TopLevelSpec {
  const values = summaries
    .filter(({ setting }) => setting.name !== "f16")
    .map(({ setting, bits, kl }) => ({
      ...{ method: setting.name, bits, kl },
      preset: bitsOf(setting),
    }));
  const x = { field: "bits", type: "quantitative", title: "bits per value, window included" } as const;
  const scale = { zero: false };
  const y = { field: "kl", type: "quantitative", title: "KL, nats", scale: { type: "log" } } as const;
  return {
    ...SIZE,
    title: "Divergence by what the cache takes",
    data: { values },
    layer: [
      {
        mark: { type: "point", filled: true, size: 70 },
        encoding: { x: { ...x, scale }, y, color: { field: "method", type: "nominal" } },
      },
      {
        mark: { type: "text", dx: 7, align: "left", fontSize: 9 },
        encoding: { x: { ...x, scale }, y, text: { field: "preset", type: "nominal" } },
      },
    ],
  };
}

function blocksOf(texts: readonly ForcedResult[]): number[] {
  return texts[0].kl.map((_, block) => block);
}

async function draw(spec: TopLevelSpec): Promise<string> {
  const view = new View(parse(compile({ ...spec, config: CONFIG }).spec), { renderer: "none" });
  return view.toSVG();
}
