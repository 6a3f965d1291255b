/**
 * The method in plain TypeScript: what the fast engines are tested against, and the last resort where none of them runs.
 * Each kernel is a function of its own, to check other implementations with.
 *
 * Source of the method: KVarN, arXiv 2606.03458, and its vLLM implementation (huawei-csl/KVarN, Apache-2.0).
 */
import type {
  AttendRequest,
  Backend,
  Block,
  Normalized,
  Outliers,
  Packed,
  Segment,
  Store,
  StoreShape,
  TilePair,
  TileShape,
  WriteTarget,
} from "../backend.js";
import { KvarnError } from "../errors.js";
import { fromHalf, toHalf } from "../half.js";
import { nonFiniteError, type TensorData, toFloat32 } from "../tensor.js";
import { attend } from "./attend.js";
import { normalize } from "./normalize.js";
import { dequantize, packCodes, quantize, unpackCodes } from "./pack.js";
import { decodeRecord, encodeRecord, refineRecord, type TokenRows } from "./record.js";
import { addQuery } from "./refine.js";
import { rotate } from "./rotate.js";

export type { Queries } from "../backend.js";
export type { TensorData } from "../tensor.js";
export { attend, type TokenRun } from "./attend.js";
export { normalize, type NormalizedTile } from "./normalize.js";
export { dequantize, packCodes, quantize, type Quantized, unpackCodes } from "./pack.js";
export { decodeRecord, encodeBalanced, encodeRecord, refineRecord, type TokenRows } from "./record.js";
export {
  addQuery,
  type Feedback,
  keyRanges,
  queryFeedback,
  refine,
  type RefinedTile,
  tokenFeedback,
} from "./refine.js";
export { rotate } from "./rotate.js";

const MOST_BYTES = 2 ** 32;

/**
 * A backend of the kernels in this folder: f64 where the method leaves the precision open. Slow; needs nothing.
 * @internal Callers use `openKvarn`.
 */
export function referenceBackend(): Backend {
  return new ReferenceBackend();
}

class ReferenceBackend implements Backend {
  readonly kind = "reference";
  readonly variant = "f64";
  readonly tilesAtOnce = 1;
  readonly #blocks = new Set<Block>();

  async rotate(x: Float32Array, headDim: number, out: Float32Array): Promise<void> {
    rotate(x, headDim, out);
  }

  async normalize(tiles: Float32Array, shape: TileShape, iterations: number, out: Normalized): Promise<void> {
    const { rows, columns, count } = shape;
    const size = rows * columns;
    for (let i = 0; i < count; i++) {
      const tile = normalize(tiles.subarray(i * size, (i + 1) * size), rows, columns, iterations);
      out.balanced.set(tile.balanced, i * size);
      out.rowScale.set(tile.rowScale, i * rows);
      out.columnScale.set(tile.columnScale, i * columns);
    }
  }

  async pack(balanced: Float32Array, shape: TileShape, bits: number, out: Packed): Promise<void> {
    const { codes, scale, zero } = quantize(balanced, shape.count * shape.rows, shape.columns, bits);
    out.codes.set(packCodes(codes, bits));
    out.scale.set(scale);
    out.zero.set(zero);
  }

  async unpackCodes(codes: Uint8Array, _shape: TileShape, bits: number, out: Uint8Array): Promise<void> {
    out.set(unpackCodes(codes, bits));
  }

  async unpack(packed: Packed, _shape: TileShape, bits: number, out: Float32Array): Promise<void> {
    out.set(dequantize({ ...packed, codes: unpackCodes(packed.codes, bits) }));
  }

  createStore(shape: StoreShape): Store {
    return new ReferenceStore(shape, this.#blocks);
  }

  checkAlive(): void {}

  run<T>(work: () => T): { result: T } {
    return { result: work() };
  }

  checkRoom(bytes: number): void {
    if (this.heldBytes() + bytes <= MOST_BYTES) return;
    throw new KvarnError(
      "out-of-memory",
      `the reference backend holds up to ${MOST_BYTES} bytes, as the WASM engine does; ${bytes} more are too many`,
    );
  }

  heldBytes(): number {
    let bytes = 0;
    for (const block of this.#blocks) bytes += block.bytes;
    return bytes;
  }

  dispose(): void {
    this.#blocks.clear();
  }
}

class ExactBlock implements Block {
  readonly kind = "exact";
  owners = 1;

  /** @param data binary16 bits, `[capacity, 2 (K, V), kvHeads, headDim]` */
  constructor(
    readonly capacity: number,
    readonly data: Uint16Array,
  ) {}

  get bytes(): number {
    return this.data.byteLength;
  }
}

class RecordBlock implements Block {
  readonly kind = "record";
  owners = 1;

  /** @param data the record of every KV head, unpadded */
  constructor(
    readonly capacity: number,
    readonly data: Uint8Array,
  ) {}

  get bytes(): number {
    return this.data.byteLength;
  }
}

class MomentBlock implements Block {
  readonly kind = "moments";
  readonly capacity = 0;
  owners = 1;

  /** @param data `[kvHeads, headDim, headDim]` */
  constructor(readonly data: Float32Array) {}

  get bytes(): number {
    return this.data.byteLength;
  }
}

class ReferenceStore implements Store {
  readonly slackBytes = 0;
  readonly doubt = undefined;
  readonly #shape: StoreShape;
  /** Blocks of this backend that are not freed. */
  readonly #live: Set<Block>;
  /** Elements of K, or of V, of one token. */
  readonly #width: number;

  constructor(shape: StoreShape, live: Set<Block>) {
    this.#shape = shape;
    this.#live = live;
    this.#width = shape.kvHeads * shape.headDim;
  }

  allocateExact(capacity: number): Block {
    const data = allocate(Uint16Array, capacity * 2 * this.#width);
    return this.#keep(new ExactBlock(capacity, data));
  }

  allocateRecord(): Block {
    const { kvHeads, layout } = this.#shape;
    return this.#keep(new RecordBlock(layout.group, allocate(Uint8Array, kvHeads * layout.bytes)));
  }

  allocateMoments(): Block {
    const { kvHeads, headDim } = this.#shape;
    return this.#keep(new MomentBlock(allocate(Float32Array, kvHeads * headDim ** 2)));
  }

  free(block: Block): void {
    this.#live.delete(block);
  }

  addQueries(moments: Block, q: TensorData, queryHeads: number): void {
    const { kvHeads, headDim } = this.#shape;
    const { data } = moments as MomentBlock;
    const rows = rotate(toFloat32(q), headDim);
    for (let row = 0; row * headDim < rows.length; row++) {
      const head = Math.floor(((row % queryHeads) * kvHeads) / queryHeads);
      const moment = data.subarray(head * headDim ** 2, (head + 1) * headDim ** 2);
      addQuery(moment, rows.subarray(row * headDim, (row + 1) * headDim));
    }
  }

  async readMoments(block: Block): Promise<Float32Array> {
    return (block as MomentBlock).data.slice();
  }

  writeMoments(block: Block, data: Float32Array): void {
    (block as MomentBlock).data.set(data);
  }

  write(targets: readonly WriteTarget[], k: TensorData, v: TensorData): void {
    const width = this.#width;
    for (const { block, at, from, tokens } of targets) {
      const { data } = this.#exact(block);
      const keys = this.#rotateToHalf("k", k, from, tokens);
      const values = this.#rotateToHalf("v", v, from, tokens);
      for (let token = 0; token < tokens; token++) {
        const target = (at + token) * 2 * width;
        data.set(keys.subarray(token * width, (token + 1) * width), target);
        data.set(values.subarray(token * width, (token + 1) * width), target + width);
      }
    }
  }

  copy(source: Block, target: Block, tokens: number): void {
    if (source.kind === "moments") {
      this.writeMoments(target, (source as MomentBlock).data);
      return;
    }
    const length = tokens * 2 * this.#width;
    this.#exact(target).data.set(this.#exact(source).data.subarray(0, length));
  }

  encode(tiles: readonly TilePair[], moments?: Block): void {
    const { kvHeads, layout, encoder, iterations } = this.#shape;
    for (const { exact, record, outliers } of tiles) {
      const source = this.#exact(exact);
      const target = this.#record(record);
      for (let head = 0; head < kvHeads; head++) {
        const tokens = this.#exactRows(source, head, layout.group);
        if (outliers) {
          putMean(tokens.keys, layout.headDim, outliers[head]);
          putMean(tokens.values, layout.headDim, outliers[head]);
        }
        const record =
          encoder === "strict"
            ? encodeRecord(tokens, layout, iterations)
            : refineRecord(tokens, layout, iterations, this.#moment(moments, head));
        target.data.set(record, head * layout.bytes);
      }
    }
  }

  keyNorms(block: Block): Float64Array {
    const { kvHeads, headDim, layout } = this.#shape;
    const norms = new Float64Array(kvHeads * layout.group);
    for (let head = 0; head < kvHeads; head++) {
      const { keys } = this.#exactRows(this.#exact(block), head, layout.group);
      keys.forEach((key, i) => {
        norms[head * layout.group + Math.floor(i / headDim)] += Math.abs(key);
      });
    }
    return norms;
  }

  readHeadToken(block: Block, head: number, token: number): Uint16Array {
    const { data } = this.#exact(block);
    const { headDim } = this.#shape;
    const start = token * 2 * this.#width + head * headDim;
    const [k, v] = [start, start + this.#width].map((at) => data.subarray(at, at + headDim));
    return Uint16Array.of(...k, ...v);
  }

  async readExact(block: Block, tokens: number): Promise<Uint16Array> {
    return this.#exact(block).data.slice(0, tokens * 2 * this.#width);
  }

  writeExact(block: Block, data: Uint16Array): void {
    this.#exact(block).data.set(data);
  }

  async readRecord(block: Block): Promise<Uint8Array> {
    return this.#record(block).data.slice();
  }

  writeRecord(block: Block, records: Uint8Array): void {
    this.#record(block).data.set(records);
  }

  async decode(blocks: readonly Block[], k: Float32Array, v: Float32Array): Promise<void> {
    blocks.forEach((block, i) => this.#decode(block, k, v, i * this.#shape.layout.group));
  }

  #decode(block: Block, k: Float32Array, v: Float32Array, at: number): void {
    const { kvHeads, headDim, layout } = this.#shape;
    for (let head = 0; head < kvHeads; head++) {
      const { keys, values } = this.#recordRows(this.#record(block), head);
      const rotatedBack = [
        { rows: rotate(Float32Array.from(keys), headDim), target: k },
        { rows: rotate(Float32Array.from(values), headDim), target: v },
      ];
      for (const { rows, target } of rotatedBack) {
        for (let token = 0; token < layout.group; token++) {
          const row = rows.subarray(token * headDim, (token + 1) * headDim);
          target.set(row, ((at + token) * kvHeads + head) * headDim);
        }
      }
    }
  }

  async attend(request: AttendRequest): Promise<void> {
    const runs = [...request.records, ...request.exact].map(({ block, start, tokens }: Segment) => ({
      start,
      tokens,
      read: (head: number) =>
        block.kind === "exact"
          ? this.#exactRows(this.#exact(block), head, tokens)
          : this.#putOutliers(this.#recordRows(this.#record(block), head), start, head, request.outliers),
    }));
    // What lies on a GPU never comes here.
    const [q, out] = [request.q as TensorData, request.out as Float32Array];
    attend({ ...request, q, out }, this.#shape.kvHeads, this.#shape.headDim, runs);
    if (request.moments) this.addQueries(request.moments(), q, request.queryHeads);
  }

  trim(): void {}

  dispose(): void {}

  /** Some tokens of a caller's array, rotated and rounded: binary16 bits, `[tokens, kvHeads, headDim]`. */
  #rotateToHalf(name: string, data: TensorData, from: number, tokens: number): Uint16Array {
    const { kvHeads, headDim } = this.#shape;
    const rows = toFloat32(data.subarray(from * this.#width, (from + tokens) * this.#width));
    const halves = Uint16Array.from(rotate(rows, headDim, rows), toHalf);
    const bad = halves.findIndex((bits) => !Number.isFinite(fromHalf(bits)));
    if (bad >= 0) {
      const row = from * kvHeads + Math.floor(bad / headDim);
      throw nonFiniteError(name, data, row, kvHeads, headDim);
    }
    return halves;
  }

  /** The first tokens of an exact block, of one head. */
  #exactRows(block: ExactBlock, head: number, tokens: number): TokenRows {
    const { headDim } = this.#shape;
    const keys = new Float32Array(tokens * headDim);
    const values = new Float32Array(tokens * headDim);
    for (let token = 0; token < tokens; token++) {
      const source = token * 2 * this.#width + head * headDim;
      for (let channel = 0; channel < headDim; channel++) {
        keys[token * headDim + channel] = fromHalf(block.data[source + channel]);
        values[token * headDim + channel] = fromHalf(block.data[source + this.#width + channel]);
      }
    }
    return { keys, values };
  }

  #moment(moments: Block | undefined, head: number): Float32Array | undefined {
    const size = this.#shape.headDim ** 2;
    return (moments as MomentBlock | undefined)?.data.subarray(head * size, (head + 1) * size);
  }

  #recordRows(block: RecordBlock, head: number): TokenRows {
    const { layout } = this.#shape;
    return decodeRecord(block.data.subarray(head * layout.bytes, (head + 1) * layout.bytes), layout);
  }

  /** Puts exact tokens in place of what a record, from position `start` on, has for them. */
  #putOutliers(rows: TokenRows, start: number, head: number, outliers: Outliers | undefined): TokenRows {
    if (!outliers) return rows;
    const { headDim, layout } = this.#shape;
    const first = outliers.positions.slice(0, head).reduce((sum, { length }) => sum + length, 0);
    outliers.positions[head].forEach((position, i) => {
      if (position < start || position >= start + layout.group) return;
      const at = (first + i) * 2 * headDim;
      for (let channel = 0; channel < headDim; channel++) {
        const target = (position - start) * headDim + channel;
        rows.keys[target] = fromHalf(outliers.data[at + channel]);
        rows.values[target] = fromHalf(outliers.data[at + headDim + channel]);
      }
    });
    return rows;
  }

  #keep<B extends Block>(block: B): B {
    this.#live.add(block);
    return block;
  }

  // A fast engine would read whatever took a freed block's place. The oracle says so.
  #exact(block: Block): ExactBlock {
    if (!(block instanceof ExactBlock) || !this.#live.has(block)) throw new Error("not a live exact block");
    return block;
  }

  #record(block: Block): RecordBlock {
    if (!(block instanceof RecordBlock) || !this.#live.has(block)) throw new Error("not a live record block");
    return block;
  }
}

/** Puts the mean of the other rows, as binary16 has it, in place of some. */
function putMean(rows: TokenRows["keys"], headDim: number, places: readonly number[]): void {
  const tokens = rows.length / headDim;
  for (let channel = 0; channel < headDim; channel++) {
    let sum = 0;
    for (let token = 0; token < tokens; token++) {
      if (!places.includes(token)) sum += rows[token * headDim + channel];
    }
    const mean = fromHalf(toHalf(sum / (tokens - places.length)));
    for (const place of places) rows[place * headDim + channel] = mean;
  }
}

function allocate<T>(type: new (length: number) => T, length: number): T {
  try {
    return new type(length);
  } catch (cause) {
    throw new KvarnError("out-of-memory", `no memory for ${length} elements of ${type.name}`, { cause });
  }
}
