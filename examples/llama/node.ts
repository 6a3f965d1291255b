/** Opens models in Node, Deno and Bun. */
import { open, readFile } from "node:fs/promises";
import { basename } from "node:path";
import type { Llama } from "./answer.js";
import { Decoder } from "./decoder.js";
import { readGguf } from "./gguf.js";
import { modelError, type ModelFile } from "./model-file.js";
import { ModelTokenizer } from "./tokenizer.js";

/** The kernels, compiled: `npm run build:llama` makes them, in the folder that commands run in. */
export async function compileKernels(): Promise<WebAssembly.Module> {
  return WebAssembly.compile(await readFile("build/llama.wasm"));
}

/**
 * Loads a GGUF file.
 * @throws {Error} where it is missing, damaged or no plain Llama
 */
export async function loadLlama(path: string): Promise<Llama> {
  const handle = await open(path).catch((cause: Error) => {
    throw modelError(path, `it cannot be read: ${cause.message}`, cause);
  });
  try {
    const { size } = await handle.stat();
    const file: ModelFile = {
      name: basename(path),
      bytes: size,
      read: async (start, end) => {
        const bytes = new Uint8Array(Math.max(0, Math.min(end, size) - start));
        await handle.read(bytes, 0, bytes.length, start);
        return bytes;
      },
    };
    const model = await readGguf(file);
    return {
      decoder: await Decoder.load(model, await compileKernels()),
      tokenizer: new ModelTokenizer(model),
    };
  } finally {
    await handle.close();
  }
}
