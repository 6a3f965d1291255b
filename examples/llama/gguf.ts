/** Reads a GGUF file: what the model is, its tokenizer's data, and where each tensor lies. */
import { type GGUFParseOutput, gguf, type MetadataValue } from "@huggingface/gguf";
import { modelError, type ModelFile } from "./model-file.js";

/** Types of weights that the kernels multiply with: their numbers in GGUF, weights of a block, and its bytes. */
const TYPES = {
  F32: { number: 0, weights: 1, bytes: 4 },
  F16: { number: 1, weights: 1, bytes: 2 },
  Q4_0: { number: 2, weights: 32, bytes: 18 },
  Q4_1: { number: 3, weights: 32, bytes: 20 },
  Q8_0: { number: 8, weights: 32, bytes: 34 },
} as const;

/** A tensor of weights: `rows` vectors of `columns` weights, one after another; one row where it is a vector. */
export interface TensorPlace {
  readonly name: string;
  /** GGUF's number of the type. */
  readonly type: number;
  readonly rows: number;
  readonly columns: number;
  readonly rowBytes: number;
  /** Where in the file it begins. */
  readonly offset: number;
}

/** Metadata by GGUF's names. */
export type Metadata = ReadonlyMap<string, MetadataValue>;

/** A GGUF file whose header has been read. */
export interface GgufModel {
  readonly file: ModelFile;
  readonly metadata: Metadata;
  readonly tensors: ReadonlyMap<string, TensorPlace>;
}

/**
 * Reads the header and checks that all tensors lie in the file.
 * @throws {Error} for files that are no GGUF, are cut short, or have weights of other types
 */
export async function readGguf(file: ModelFile): Promise<GgufModel> {
  const { metadata, tensorInfos, tensorDataOffset, littleEndian } = await parse(file);
  if (!littleEndian) throw modelError(file.name, "its numbers are big-endian, which is not supported");
  const tensors = tensorInfos.map(({ name, shape, dtype, offset }) => {
    const type = Object.values(TYPES).find(({ number }) => number === (dtype as number));
    if (!type) {
      const known = Object.keys(TYPES).join(", ");
      throw modelError(file.name, `${name} is of the quantization type ${dtype}; supported are ${known}`);
    }
    const [columns, rows = 1] = shape.map(Number);
    const rowBytes = (columns / type.weights) * type.bytes;
    const place = {
      name,
      type: type.number,
      rows,
      columns,
      rowBytes,
      offset: Number(tensorDataOffset + offset),
    };
    if (shape.length > 2 || columns % type.weights !== 0) {
      throw modelError(file.name, `${name} has the shape ${shape.join("x")}: the file is damaged`);
    }
    const end = place.offset + rows * rowBytes;
    if (end > file.bytes) {
      throw modelError(
        file.name,
        `the file is cut short: ${name} ends at byte ${end}, the file at ${file.bytes}`,
      );
    }
    return [name, place] as const;
  });
  return { file, metadata: new Map(Object.entries(metadata)), tensors: new Map(tensors) };
}

async function parse(file: ModelFile): Promise<GGUFParseOutput> {
  let parsed: GGUFParseOutput;
  try {
    // The parser asks for ranges of an address: those of the file are all that there is.
    parsed = await gguf("https://model.invalid/", { fetch: (_, init) => fetchRange(file, init) });
  } catch (error) {
    throw modelError(file.name, `it cannot be read as GGUF: ${(error as Error).message}`, error);
  }
  // Behind the end of a short file the parser reads zeros.
  const [, headerEnd] = parsed.tensorInfoByteRange;
  if (headerEnd > file.bytes) {
    throw modelError(file.name, `the file is cut short: its header goes beyond its ${file.bytes} bytes`);
  }
  return parsed;
}

async function fetchRange(file: ModelFile, init: RequestInit | undefined): Promise<Response> {
  const range = new Headers(init?.headers).get("range") ?? "";
  const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(range)!;
  return new Response(await file.read(Number(first), Number(last) + 1));
}
