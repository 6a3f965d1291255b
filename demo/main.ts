/** Joins the parts of the page: controls and files on one side, what workers compute and views show on the other. */
import { formatInteger } from "../src/cli/text.js";
import { AttentionView } from "./attention-view.js";
import { BackendsView } from "./backends-view.js";
import { type Choice, Controls } from "./controls.js";
import { byId } from "./dom.js";
import type * as explorer from "./explorer.js";
import { MemoryView } from "./memory-view.js";
import { newestOnly, Remote } from "./remote.js";
import { type Source, watchSources } from "./source.js";
import { StagesView } from "./stages-view.js";

/** The dump that is open. */
interface Open extends explorer.OpenedDump {
  readonly description: string;
}

const remote = new Remote<typeof explorer>(
  new Worker(new URL("./explorer-worker.ts", import.meta.url), { type: "module" }),
);
const controls = new Controls(update);
const stagesView = new StagesView();
const attentionView = new AttentionView();
const backendsView = new BackendsView();
const status = byId("source", HTMLElement);
const alert = byId("error", HTMLElement);

let current: Open | undefined;
/** What the backends were last measured on. */
let measured = "";

const open = newestOnly(async ({ data, name }: Source) => {
  alert.textContent = "";
  status.textContent = `Reading ${name} …`;
  try {
    const opened = await remote.call("open", data);
    current = { ...opened, description: describe(name, opened) };
    measured = "";
    controls.show(current.layers);
    update();
  } catch (error) {
    alert.textContent = `${name}: ${(error as Error).message}`;
  }
  status.textContent = current?.description ?? "";
});

const showStages = newestOnly(async ({ layer, head, part, tile, settings }: Choice) => {
  if (tile === null) {
    stagesView.clear(`The layer has fewer tokens than a tile: ${settings.group}.`);
    return;
  }
  await show("stages", { layer, head, part, tile, settings }, (stages) => {
    stagesView.show(stages, tile === 0);
  });
});

const showAttention = newestOnly(async ({ layer, queryHead, settings }: Choice) => {
  await show("attention", { layer, head: queryHead, settings }, (map) => {
    if (map) attentionView.show(map);
    else attentionView.clear("The dump has no queries for this layer.");
  });
});

/** Asks the worker about the open dump and shows the answer, unless another dump has been opened meanwhile. */
async function show<Name extends "stages" | "attention">(
  name: Name,
  argument: Parameters<(typeof explorer)[Name]>[0],
  draw: (result: Awaited<ReturnType<(typeof explorer)[Name]>>) => void,
): Promise<void> {
  const asked = current;
  try {
    const result = await remote.call(name, argument);
    if (current === asked) draw(result);
  } catch (error) {
    if (current === asked) alert.textContent = (error as Error).message;
  }
}

/** Shows what is chosen. */
function update(): void {
  alert.textContent = "";
  const choice = controls.read();
  showStages(choice);
  showAttention(choice);
  const { layer, settings } = choice;
  const what = JSON.stringify({ layer, settings });
  if (what === measured) return;
  measured = what;
  backendsView.measure(async () => ({ sample: await remote.call("sample", layer), settings }));
}

function describe(name: string, { layers, ignored }: explorer.OpenedDump): string {
  const { tokens, queryHeads, kvHeads, headDim, queryTokens } = layers[0];
  const heads =
    queryTokens > 0 ? `${queryHeads} query and ${kvHeads} KV heads` : `${kvHeads} KV heads, no queries`;
  const layout = `${formatInteger(tokens)} tokens, ${heads} of ${headDim}`;
  const others = ignored > 0 ? ` ${formatInteger(ignored)} other tensors are ignored.` : "";
  return `${name}: ${layers.length === 1 ? "one layer" : `${layers.length} layers`}; ${layout}.${others}`;
}

new MemoryView();
watchSources(open);
