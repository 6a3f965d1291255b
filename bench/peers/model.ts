/** A model of one operator for ONNX Runtime: com.microsoft's GroupQueryAttention over a cache that it is given. */
import { importPackage } from "./packages.js";

/** ONNX's numbers of element types. */
export const ElementType = { f32: 1, u8: 2, i8: 3, i32: 6 } as const;
export type ElementType = (typeof ElementType)[keyof typeof ElementType];

/** How a model's cache is held. */
export interface CacheFormat {
  readonly type: ElementType;
  /** Elements of one head's key or value. */
  readonly width: number;
  /** Of codes with one f32 scale for each channel, which are inputs then. */
  readonly bits?: 4 | 8;
}

/** Fields of a protobuf message by their numbers; a list repeats its field. */
interface Message {
  readonly [field: number]: Field | readonly Field[];
}
type Field = number | string | Message;

/** As much of the package's writer as is used. */
interface Writer {
  tag(field: number, type: number): Writer;
  int64(value: number): Writer;
  string(value: string): Writer;
  fork(): Writer;
  join(): Writer;
  finish(): Uint8Array<ArrayBuffer>;
}

const VARINT = 0;
const LENGTH_DELIMITED = 2;

function write(writer: Writer, message: Message): Writer {
  for (const [number, value] of Object.entries(message)) {
    for (const field of Array.isArray(value) ? (value as readonly Field[]) : [value as Field]) {
      if (typeof field === "number") writer.tag(+number, VARINT).int64(field);
      else if (typeof field === "string") writer.tag(+number, LENGTH_DELIMITED).string(field);
      else write(writer.tag(+number, LENGTH_DELIMITED).fork(), field).join();
    }
  }
  return writer;
}

// What follows names the fields of onnx.proto by their numbers.

function integer(name: string, value: number): Message {
  return { 1: name, 3: value, 20: 2 };
}

function text(name: string, value: string): Message {
  return { 1: name, 4: value, 20: 3 };
}

/** A tensor's name, type and shape; dimensions without a number may differ from run to run. */
function tensor(name: string, type: ElementType, shape: readonly (number | string)[]): Message {
  const dimensions = shape.map((size): Message => (typeof size === "number" ? { 1: size } : { 2: size }));
  return { 1: name, 2: { 1: { 1: type, 2: { 1: dimensions } } } };
}

/** The model's bytes. Tensors keep the operator's names; `past` and `present` are `[1, kvHeads, capacity, width]`. */
export async function attentionModel(
  { queryHeads, kvHeads, headDim }: { queryHeads: number; kvHeads: number; headDim: number },
  { type, width, bits }: CacheFormat,
): Promise<Uint8Array<ArrayBuffer>> {
  const { BinaryWriter } = await importPackage<{ BinaryWriter: new () => Writer }>(
    "@bufbuild/protobuf",
    "dist/esm/wire/index.js",
  );
  const { f32, i32 } = ElementType;
  const cache = [1, kvHeads, "capacity", width];
  const inputs = {
    query: tensor("query", f32, [1, "queries", queryHeads * headDim]),
    key: tensor("key", f32, [1, "queries", kvHeads * headDim]),
    value: tensor("value", f32, [1, "queries", kvHeads * headDim]),
    past_key: tensor("past_key", type, cache),
    past_value: tensor("past_value", type, cache),
    seqlens_k: tensor("seqlens_k", i32, [1]),
    total_sequence_length: tensor("total_sequence_length", i32, []),
  };
  const outputs = {
    output: tensor("output", f32, [1, "queries", queryHeads * headDim]),
    present_key: tensor("present_key", type, cache),
    present_value: tensor("present_value", type, cache),
  };
  const scales = ["k_scale", "v_scale"].map((name) => tensor(name, f32, [kvHeads * headDim]));
  const quantized = bits !== undefined;
  // Inputs 7 to 11, tables of rotary embeddings and such, are left out.
  const skipped = ["", "", "", "", "", "k_scale", "v_scale"];
  const node: Message = {
    1: [...Object.keys(inputs), ...(quantized ? skipped : [])],
    2: Object.keys(outputs),
    4: "GroupQueryAttention",
    5: [
      integer("num_heads", queryHeads),
      integer("kv_num_heads", kvHeads),
      ...(quantized
        ? [
            integer("kv_cache_bit_width", bits),
            text("k_quant_type", "PER_CHANNEL"),
            text("v_quant_type", "PER_CHANNEL"),
          ]
        : []),
    ],
    7: "com.microsoft",
  };
  const graph: Message = {
    1: node,
    2: "attention",
    11: [...Object.values(inputs), ...(quantized ? scales : [])],
    12: Object.values(outputs),
  };
  const operatorSets = [
    { 1: "", 2: 21 },
    { 1: "com.microsoft", 2: 1 },
  ];
  return write(new BinaryWriter(), { 1: 10, 7: graph, 8: operatorSets }).finish();
}
