/** The page: a file and a question go to the worker, and the answer comes back token by token. */
import { byId } from "../../demo/dom.js";
import { describeProgress, type Progress, type Question } from "./answer.js";
import type { Reply, Request } from "./page-worker.js";

const worker = new Worker(new URL("./page-worker.ts", import.meta.url), { type: "module" });
const file = byId("file", HTMLInputElement);
const ask = byId("ask", HTMLButtonElement);
const stop = byId("stop", HTMLButtonElement);
const alert = byId("error", HTMLElement);
const model = byId("model", HTMLElement);
const text = byId("answer", HTMLElement);
const figures = byId("figures", HTMLElement);

let opened = false;
let stopped = false;

/** One request at a time: the next message is its reply. */
async function call(request: Request): Promise<Progress | undefined> {
  worker.postMessage(request);
  const reply = await new Promise<Reply>((resolve, reject) => {
    worker.onmessage = ({ data }: MessageEvent<Reply>) => resolve(data);
    // Its script did not load, or threw before it could answer.
    worker.onerror = ({ message }) => reject(new Error(message || "the page's worker does not start"));
  });
  if ("error" in reply) throw new Error(reply.error);
  return reply.progress;
}

/** Works with the controls off, but for the button that stops; shows what goes wrong. */
async function alone(work: () => Promise<void>): Promise<void> {
  alert.textContent = "";
  file.disabled = ask.disabled = true;
  try {
    await work();
  } catch (error) {
    alert.textContent = (error as Error).message;
  }
  file.disabled = false;
  ask.disabled = !opened;
}

function readQuestion(): Question {
  const number = (id: string): number => byId(id, HTMLInputElement).valueAsNumber;
  return {
    prompt: byId("prompt", HTMLTextAreaElement).value,
    preset: byId("preset", HTMLSelectElement).value,
    temperature: number("temperature"),
    seed: number("seed"),
    tokens: number("tokens"),
  };
}

async function openModel(chosen: File): Promise<void> {
  opened = false;
  model.textContent = `Reading ${chosen.name} …`;
  try {
    await call({ type: "open", file: chosen });
    opened = true;
  } finally {
    model.textContent = opened ? `${chosen.name} is open.` : "";
  }
}

async function showAnswer(): Promise<void> {
  text.textContent = figures.textContent = "";
  stopped = false;
  stop.disabled = false;
  try {
    await call({ type: "ask", question: readQuestion() });
    for (let more = await call({ type: "more" }); more; more = await call({ type: "more" })) {
      text.append(more.text);
      figures.textContent = describeProgress(more);
      if (stopped) break;
    }
    await call({ type: "stop" });
  } finally {
    stop.disabled = true;
  }
}

file.addEventListener("change", () => {
  const chosen = file.files?.[0];
  if (chosen) void alone(() => openModel(chosen));
});
byId("form", HTMLFormElement).addEventListener("submit", (event) => {
  event.preventDefault();
  void alone(showAnswer);
});
stop.addEventListener("click", () => {
  stopped = true;
});
