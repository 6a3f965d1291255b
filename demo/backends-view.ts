/** The table of backends, filled in as they are measured. */
import { formatFactor, formatInteger, formatNumber, formatPercent } from "../src/cli/text.js";
import { type BackendReport, CANDIDATES, type MeasureTask, type Speed } from "./backends.js";
import { byId, create } from "./dom.js";

/** Title, unit, and what a row has there; `undefined` while it is not known. */
type Column = readonly [
  title: string,
  unit: string,
  cell: (report: BackendReport) => (Node | string)[] | undefined,
];

const COLUMNS: readonly Column[] = [
  ["Keys", "error", ({ error }) => error && [percent(error.key)]],
  ["Values", "error", ({ error }) => error && [percent(error.value)]],
  ["Output", "error", ({ error }) => error && [percent(error.output)]],
  ["Record", "bytes", ({ size }) => size && [formatInteger(size.recordBytes)]],
  ["Smaller", "than binary16", ({ size }) => size && [formatFactor(size.recordRatio)]],
  ["Encode", "against f32", (report) => speedCell(report, report.speed?.encode)],
  ["Attend", "against f32", (report) => speedCell(report, report.speed?.attend)],
];

const SETTLE_MS = 400;

export class BackendsView {
  readonly #body: HTMLTableSectionElement;
  readonly #status = byId("backends-status", HTMLElement);
  #worker: Worker | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor() {
    const table = byId("backends", HTMLTableElement);
    const titles = COLUMNS.map(([title, unit]) => {
      return create("th", { scope: "col", role: "columnheader" }, title, create("small", {}, unit));
    });
    const corner = create("th", { scope: "col", role: "columnheader" }, "Backend");
    table.tHead!.append(create("tr", { role: "row" }, corner, ...titles));
    this.#body = table.tBodies[0];
    CANDIDATES.forEach((_, index) => this.#body.append(makeRow({ index }, "waiting")));
  }

  /**
   * Measures anew, and ends what was being measured.
   * @param prepare gets what to measure on; asked for once the settings have been left alone for a moment
   */
  measure(prepare: () => Promise<MeasureTask>): void {
    this.#worker?.terminate();
    this.#worker = undefined;
    clearTimeout(this.#timer);
    this.#status.textContent = "";
    this.#body.classList.add("stale");
    this.#timer = setTimeout(() => void this.#start(prepare), SETTLE_MS);
  }

  async #start(prepare: () => Promise<MeasureTask>): Promise<void> {
    const timer = this.#timer;
    const task = await prepare().catch((error: unknown) => error as Error);
    // Other settings, or another dump, may have been chosen meanwhile.
    if (timer !== this.#timer) return;
    if (task instanceof Error) {
      this.#status.textContent = task.message;
      return;
    }
    this.#describe(task);
    this.#body.classList.remove("stale");
    this.#body.replaceChildren(...CANDIDATES.map((_, index) => makeRow({ index }, "measuring …")));
    this.#status.textContent = "Measuring …";
    const worker = new Worker(new URL("./backends-worker.ts", import.meta.url), { type: "module" });
    this.#worker = worker;
    const end = (message: string): void => {
      this.#status.textContent = message;
      worker.terminate();
    };
    worker.addEventListener("message", ({ data }: MessageEvent<BackendReport | "done">) => {
      if (data === "done") end("All backends of this browser are measured.");
      else this.#body.rows[data.index].replaceWith(makeRow(data, "measuring …"));
    });
    worker.addEventListener("error", ({ message }) => end(`The measurement stopped: ${message}`));
    worker.postMessage(task);
  }

  #describe({ sample: { number, tokens, queryTokens } }: MeasureTask): void {
    const queries = queryTokens > 0 ? `, its last ${queryTokens} queries` : "";
    byId("backends-note", HTMLElement).textContent =
      `Measured on the newest ${formatInteger(tokens)} tokens of layer ${number}${queries}. Error: relative, of keys ` +
      `and values from records, and of attention outputs against exact attention. Encode and attend: 1x is the ` +
      `speed of an uncompressed f32 cache (SIMD WebAssembly, one thread) at storing the same tokens and at attending ` +
      `to them, timed in turn; medians, and the time of one token.`;
  }
}

function makeRow(report: BackendReport, pending: string): HTMLTableRowElement {
  const { backend, variant } = CANDIDATES[report.index];
  const name = create("th", { scope: "row", role: "rowheader" }, `${backend} ${variant}`);
  if (report.software) name.append(create("small", {}, "software GPU"));
  const row = create("tr", { role: "row" }, name);
  if (report.problem !== undefined) {
    const reason = `Not here: ${report.problem}`;
    row.append(create("td", { role: "cell", class: "problem", colspan: String(COLUMNS.length) }, reason));
    return row;
  }
  for (const [title, unit, cell] of COLUMNS) {
    const attributes = { role: "cell", "data-title": `${title}, ${unit}` };
    row.append(create("td", attributes, ...(cell(report) ?? [create("small", {}, pending)])));
  }
  return row;
}

function percent(error: number | null): string {
  return error === null ? "-" : `${formatPercent(error)} %`;
}

/** Microseconds, or milliseconds where they are many. */
function formatTime(time: number): string {
  return time < 1000 ? `${formatNumber(time)} µs` : `${formatNumber(time / 1000)} ms`;
}

function speedCell(
  { notTimed }: BackendReport,
  speed: Speed | null | undefined,
): (Node | string)[] | undefined {
  if (notTimed !== undefined) return [create("small", {}, notTimed)];
  if (speed === null) return ["-"];
  return speed && [formatFactor(speed.ratio), create("small", {}, formatTime(speed.time))];
}
