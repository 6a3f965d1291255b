/** The model, off the page's thread. It answers one request after another, each with one reply. */
import { type Kvarn, openKvarn } from "kvarn";
import { answer, type Llama, type Progress, type Question } from "./answer.js";
import { Decoder } from "./decoder.js";
import { readGguf } from "./gguf.js";
import { blobFile } from "./model-file.js";
import { ModelTokenizer } from "./tokenizer.js";

/** What the page wants: a model's file opened, a question put to it, and more of the answer, token by token, or no more. */
export type Request =
  | { readonly type: "open"; readonly file: File }
  | { readonly type: "ask"; readonly question: Question }
  | { readonly type: "more" }
  | { readonly type: "stop" };

/** What it gets. `progress` is missing where an answer is at its end, and where there is none. */
export type Reply = { readonly progress?: Progress } | { readonly error: string };

/** What is open: the engine, from the first question on; the model; the answer that is under way. */
let kvarn: Kvarn | undefined;
let llama: Llama | undefined;
let running: AsyncGenerator<Progress, void> | undefined;

async function open(file: File): Promise<Llama> {
  const model = await readGguf(blobFile(file, file.name));
  const kernels = await fetch(new URL("../../build/llama.wasm", import.meta.url));
  const module = await WebAssembly.compile(await kernels.arrayBuffer());
  return { decoder: await Decoder.load(model, module), tokenizer: new ModelTokenizer(model) };
}

async function handle(request: Request): Promise<Reply> {
  if (request.type === "more") {
    const next = await running?.next();
    return next?.done === false ? { progress: next.value } : {};
  }
  await running?.return();
  running = undefined;
  if (request.type === "open") {
    // The old model's memory need not stay until the new one is there.
    llama = undefined;
    llama = await open(request.file);
  } else if (request.type === "ask" && llama) {
    kvarn ??= await openKvarn({ backend: "wasm" });
    running = answer(llama, kvarn, request.question);
  }
  return {};
}

addEventListener("message", ({ data }: MessageEvent<Request>) => {
  void handle(data)
    .catch((error: Error): Reply => ({ error: error.message }))
    .then((reply) => postMessage(reply));
});
