/** The data of the suite, as `conformance/data` holds it: two pairs of a JSON file and the bytes that it points into. */
import type { LayerConfig } from "../config.js";
import type { CacheCall } from "./adapter.js";
import { derivedBytes, derivedJson, goldenBytes, goldenJson } from "./inlined.js";
import type { InputKind } from "./input.js";

/** Bytes in the `.bin` file of the same name; f32 and binary16 in it are little-endian. */
export interface Slice {
  readonly offset: number;
  readonly bytes: number;
}

/** Whole tiles and their records. */
export interface RecordCase {
  readonly name: string;
  readonly kind: InputKind;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly tokens: number;
  readonly group: number;
  readonly keyBits: number;
  readonly valueBits: number;
  readonly iterations: number;
  readonly keySeed: number;
  readonly valueSeed: number;
  /** Plain sums of K and V. */
  readonly keyChecksum: number;
  readonly valueChecksum: number;
  /** Relative L2 errors of the decoded records against K and V. */
  readonly keyRelativeError: number;
  readonly valueRelativeError: number;
  /** Bytes of one record. */
  readonly recordBytes: number;
  /** Those of a tile's heads after one another, tiles in token order. */
  readonly records: Slice;
}

export interface RotateCase {
  readonly name: string;
  readonly rows: number;
  readonly headDim: number;
  readonly seed: number;
  /** f32 */
  readonly output: Slice;
}

export interface NormalizeCase {
  readonly name: string;
  /** A key tile is channel-major, `[headDim, tokens]`; a value tile `[tokens, headDim]`. */
  readonly side: "key" | "value";
  readonly kind: InputKind;
  readonly seed: number;
  /** What the tile is multiplied by. */
  readonly scale: number;
  readonly rows: number;
  readonly columns: number;
  readonly iterations: number;
  /** f32 */
  readonly rowScale: Slice;
  /** f32 */
  readonly columnScale: Slice;
}

export interface PackCase {
  readonly name: string;
  readonly rows: number;
  readonly columns: number;
  readonly bits: number;
  readonly seed: number;
  readonly codes: Slice;
  /** f32 */
  readonly scale: Slice;
  /** f32 */
  readonly zero: Slice;
}

/** Records that no encoder made like this, but that are valid. */
export interface DecodeCase {
  readonly name: string;
  readonly preset: string;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly records: Slice;
}

/** Exact tokens, both K and V of kind `gauss`. */
export interface ExactTokens {
  readonly tokens: number;
  readonly keySeed: number;
  readonly valueSeed: number;
}

export interface AttendCase extends LayerConfig {
  readonly name: string;
  readonly preset: string;
  /** Of exactly one tile, or of none. */
  readonly sink: ExactTokens;
  /** The name of a case that has records: of `golden`, `encode` or `decode`. */
  readonly records: string;
  readonly tail: ExactTokens;
  readonly queries: { readonly tokens: number; readonly seed: number; readonly scale: number };
  /** f32, `[queries, queryHeads, headDim]` */
  readonly output: Slice;
}

/** What a cache is told, and what must come of it. `cache` names the one that is meant. */
export type Step =
  /** In calls of `chunk` tokens each, the last of what is left. */
  | { do: "append"; cache: string; layer: number; tokens: string; from: number; count: number; chunk: number }
  | { do: "attend"; cache: string; layer: number; seed: number; count: number; output: Slice }
  /** One slice a tile. */
  | { do: "records"; cache: string; layer: number; records: readonly Slice[] }
  | { do: "length"; cache: string; layer: number; length: number }
  | { do: "flush"; cache: string }
  | { do: "truncate"; cache: string; length: number }
  | { do: "refuse-truncate"; cache: string; length: number }
  | { do: "refuse-append"; cache: string; layer: number; tokens: string; from: number; count: number }
  | { do: "fork"; cache: string; as: string }
  | { do: "save"; cache: string; as: string; mostBytes: number }
  | { do: "dispose"; cache: string };

/** A life of a cache, from its making on. The one that is made is called `main`. */
export interface CacheCase {
  readonly name: string;
  readonly config: CacheCall;
  /** K and V by name, both of kind `gauss`, of the layers' kvHeads and headDim. */
  readonly tokens: Readonly<Record<string, ExactTokens>>;
  readonly steps: readonly Step[];
}

/** `golden.json`: records that KVarN's vLLM implementation made. */
export interface GoldenData {
  readonly cases: readonly RecordCase[];
}

/** `derived.json`: what the reference backend made of it. */
export interface DerivedData {
  readonly rotate: readonly RotateCase[];
  readonly normalize: readonly NormalizeCase[];
  readonly pack: readonly PackCase[];
  readonly encode: readonly RecordCase[];
  readonly decode: readonly DecodeCase[];
  readonly attend: readonly AttendCase[];
  readonly cache: readonly CacheCase[];
}

/** A JSON file and its bytes. */
export class DataFile<T> {
  readonly #json: string;
  readonly #base64: string;
  #cases: T | undefined;
  #bytes: Uint8Array | undefined;

  /** Nothing is read before it is asked for. */
  constructor(json: string, base64: string) {
    this.#json = json;
    this.#base64 = base64;
  }

  get cases(): T {
    return (this.#cases ??= JSON.parse(this.#json) as T);
  }

  /** A copy of some bytes. */
  bytes({ offset, bytes }: Slice): Uint8Array {
    this.#bytes ??= Uint8Array.from(atob(this.#base64), (char) => char.charCodeAt(0));
    return this.#bytes.slice(offset, offset + bytes);
  }

  floats(slice: Slice): Float32Array {
    const bytes = this.bytes(slice);
    const view = new DataView(bytes.buffer);
    return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
  }
}

export const golden = new DataFile<GoldenData>(goldenJson, goldenBytes);
export const derived = new DataFile<DerivedData>(derivedJson, derivedBytes);

/** Records and their shape. */
export interface NamedRecords {
  readonly preset: string;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly records: Uint8Array;
}

/** `k{keyBits}v{valueBits}_g{group}` */
export function presetOf({ keyBits, valueBits, group }: RecordCase): string {
  return `k${keyBits}v${valueBits}_g${group}`;
}

/** The cases for encoders, each with the file that holds its records. */
export function recordCases(): { readonly file: typeof golden | typeof derived; readonly one: RecordCase }[] {
  return [
    ...golden.cases.cases.map((one) => ({ file: golden, one })),
    ...derived.cases.encode.map((one) => ({ file: derived, one })),
  ];
}

/** All records that there are. */
export function namedRecords(): Map<string, NamedRecords> {
  const encoded = recordCases().map(
    ({ file, one }) =>
      [one.name, { ...one, preset: presetOf(one), records: file.bytes(one.records) }] as const,
  );
  const others = derived.cases.decode.map(
    (one) => [one.name, { ...one, records: derived.bytes(one.records) }] as const,
  );
  return new Map<string, NamedRecords>([...encoded, ...others]);
}
