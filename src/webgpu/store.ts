/** Tiles of one layer shape in buffers of a GPU device. */
import type {
  AttendRequest,
  Block,
  Budget,
  Segment,
  Store,
  StoreShape,
  TilePair,
  WriteTarget,
} from "../backend.js";
import { halfBytesPerToken, momentBytes } from "../bytes.js";
import { rotationBlock } from "../format.js";
import { type GpuTensor, isGpuTensor, type TensorData } from "../tensor.js";
import { attend, type ExactRun, type RecordRun } from "./attend.js";
import { encode } from "./encode.js";
import { checkTokens } from "./finite.js";
import { type Binding, floatBits, type Gpu, grid } from "./gpu.js";
import { loadLateShaders } from "./kernel.js";
import { type GpuBlock, Pool } from "./pool.js";
import { addQueries, factorQueries, type GpuQueries } from "./queries.js";
import { recordConstants } from "./record.js";

/** Bytes of a caller's K and V, or queries to encode by, that are uploaded at a time. */
const UPLOAD_BYTES = 1 << 24;

export class GpuStore implements Store {
  readonly #gpu: Gpu;
  readonly #shape: StoreShape;
  readonly #exact: Pool;
  readonly #records: Pool;
  readonly #moments: Pool;
  /** Bytes of one exact token. */
  readonly #tokenBytes: number;
  /** The encoded tiles that the last attention saw, as kernels want them. */
  #runs:
    | { readonly records: readonly Segment[]; readonly moves: number; readonly runs: readonly RecordRun[] }
    | undefined;

  /** @param beside whose blocks it shares: with new ones in the same buffers, one dispatch sees them all */
  constructor(gpu: Gpu, shape: StoreShape, mayLeave: Budget, beside?: GpuStore) {
    this.#gpu = gpu;
    this.#shape = shape;
    // Exact tiles are few, and take turns in the same room: more of it would stay unused.
    this.#exact = (beside ? beside.#exact : new Pool(gpu, "exact", () => false)).own(this);
    this.#records = (beside ? beside.#records : new Pool(gpu, "record", mayLeave)).own(this);
    this.#moments = (beside ? beside.#moments : new Pool(gpu, "moments", () => false)).own(this);
    this.#tokenBytes = halfBytesPerToken(shape);
    // Whoever needs them waits for them, and says so where they are not to be had.
    if (shape.encoder === "refined") loadLateShaders().catch(() => {});
  }

  get slackBytes(): number {
    return this.#pools.reduce((sum, pool) => sum + pool.slackBytesOf(this), 0);
  }

  get doubt(): Promise<void> | undefined {
    return this.#gpu.uncertain ? this.#gpu.settled : undefined;
  }

  allocateExact(capacity: number): Block {
    return this.#exact.allocate(capacity, capacity * this.#tokenBytes);
  }

  allocateRecord(): Block {
    const { kvHeads, layout } = this.#shape;
    return this.#records.allocate(layout.group, kvHeads * layout.bytes);
  }

  allocateMoments(): Block {
    const bytes = momentBytes(this.#shape);
    const block = this.#moments.allocate(0, bytes);
    this.#gpu.clear(block.buffer, block.offset, bytes);
    return block;
  }

  free(block: Block): void {
    const { pool } = block as GpuBlock;
    pool.free(block as GpuBlock);
  }

  check(k: TensorData | GpuTensor, v: TensorData | GpuTensor): void {
    const { kvHeads, headDim } = this.#shape;
    if (!isGpuTensor(k)) checkTokens("k", k, kvHeads, headDim);
    if (!isGpuTensor(v)) checkTokens("v", v, kvHeads, headDim);
  }

  write(targets: readonly WriteTarget[], k: TensorData | GpuTensor, v: TensorData | GpuTensor): void {
    this.#writeSide(targets, k, "k");
    this.#writeSide(targets, v, "v");
  }

  copy(source: Block, target: Block, tokens: number): void {
    const bytes = source.kind === "moments" ? source.bytes : tokens * this.#tokenBytes;
    const [from, to] = [source as GpuBlock, target as GpuBlock];
    if (from.buffer !== to.buffer) {
      this.#gpu.copy(from.buffer, from.offset, to.buffer, to.offset, bytes);
      return;
    }
    // Copies within one buffer are not allowed.
    const between = this.#gpu.scratch("copy", bytes);
    this.#gpu.copy(from.buffer, from.offset, between, 0, bytes);
    this.#gpu.copy(between, 0, to.buffer, to.offset, bytes);
  }

  encode(tiles: readonly TilePair[], moments?: Block): void {
    const factors = moments && factorQueries(this.#gpu, this.#shape, moments as GpuBlock);
    const groups = groupBy(tiles, ({ exact, record }) => [
      (exact as GpuBlock).buffer,
      (record as GpuBlock).buffer,
    ]);
    for (const { key, items } of groups) {
      const offsets = items.map(({ exact, record }) => {
        return { exact: (exact as GpuBlock).offset, record: (record as GpuBlock).offset };
      });
      encode(this.#gpu, this.#shape, key[0], key[1], offsets, factors);
    }
  }

  addQueries(moments: Block, q: TensorData, queryHeads: number): void {
    const width = queryHeads * this.#shape.headDim;
    const most = Math.max(1, Math.floor(UPLOAD_BYTES / (width * q.BYTES_PER_ELEMENT)));
    for (let from = 0; from < q.length; from += most * width) {
      const some = q.subarray(from, from + most * width);
      const queries = this.#queries(some, some.length / width, queryHeads);
      addQueries(this.#gpu, this.#shape, queries, moments as GpuBlock);
    }
  }

  async readMoments(block: Block): Promise<Float32Array> {
    const { buffer, offset } = block as GpuBlock;
    return new Float32Array((await this.#gpu.read(buffer, offset, momentBytes(this.#shape))).buffer);
  }

  writeMoments(block: Block, data: Float32Array): void {
    this.#put(block as GpuBlock, data);
  }

  async readExact(block: Block, tokens: number): Promise<Uint16Array> {
    const { buffer, offset } = block as GpuBlock;
    return new Uint16Array((await this.#gpu.read(buffer, offset, tokens * this.#tokenBytes)).buffer);
  }

  writeExact(block: Block, data: Uint16Array): void {
    this.#put(block as GpuBlock, data);
  }

  readRecord(block: Block): Promise<Uint8Array> {
    const { buffer, offset } = block as GpuBlock;
    return this.#gpu.read(buffer, offset, this.#shape.kvHeads * this.#shape.layout.bytes);
  }

  writeRecord(block: Block, records: Uint8Array): void {
    this.#put(block as GpuBlock, records);
  }

  async decode(blocks: readonly Block[], k: Float32Array, v: Float32Array): Promise<void> {
    const { kvHeads, headDim, layout } = this.#shape;
    const perTile = layout.group * kvHeads * headDim;
    const half = blocks.length * perTile * 4;
    const kernel = this.#gpu.kernel("decode", {
      ...recordConstants(layout),
      BLOCK: rotationBlock(headDim),
      KV_HEADS: kvHeads,
    });
    const decoded = this.#gpu.scratch("decoded", 2 * half);
    blocks.forEach((block, i) => {
      const { buffer, offset } = block as GpuBlock;
      const at = i * perTile;
      this.#gpu.dispatch({
        kernel,
        params: [offset / 4, at, half / 4 + at, rotationFactor(headDim)],
        bindings: [{ buffer }, { buffer: decoded, size: 2 * half }],
        groups: [layout.group, kvHeads, 2],
      });
    });
    const data = await this.#gpu.read(decoded, 0, 2 * half);
    k.set(new Float32Array(data.buffer, 0, half / 4));
    v.set(new Float32Array(data.buffer, half, half / 4));
  }

  async attend(request: AttendRequest): Promise<void> {
    const { kvHeads, headDim, layout } = this.#shape;
    const { queryTokens, queryHeads, position, slidingWindow, softCap, sinkLogits, softmaxScale, out } =
      request;
    const width = queryHeads * headDim;
    const shape = { kvHeads, queryHeads, headDim, layout };
    const q = this.#queries(request.q, queryTokens, queryHeads);
    // First, as the output may lie where they do.
    if (request.moments) addQueries(this.#gpu, this.#shape, q, request.moments() as GpuBlock);
    const bytes = queryTokens * width * 4;
    if (isGpuTensor(out)) this.#gpu.relyOnCaller();
    const result = isGpuTensor(out)
      ? bind(this.#gpu, out.buffer, out.offset ?? 0, bytes)
      : { binding: { buffer: this.#gpu.scratch("out", bytes), size: bytes }, word: 0 };
    attend(this.#gpu, shape, {
      q: q.binding,
      qWord: q.word,
      half: q.half,
      queryTokens,
      position,
      records: this.#recordRuns(request.records),
      exact: exactRuns(request.exact),
      slidingWindow,
      softCap,
      sinkLogits,
      softmaxScale,
      out: result.binding,
      outWord: result.word,
    });
    if (isGpuTensor(out)) return;
    out.set(new Float32Array((await this.#gpu.read(result.binding.buffer, 0, bytes)).buffer));
  }

  trim(): void {
    for (const pool of this.#pools) pool.trim();
  }

  dispose(): void {
    for (const pool of this.#pools) pool.disown(this);
  }

  get #pools(): readonly Pool[] {
    return [this.#exact, this.#records, this.#moments];
  }

  #queries(q: TensorData | GpuTensor, tokens: number, queryHeads: number): GpuQueries {
    const source = this.#source(q, "q", 0, tokens, queryHeads * this.#shape.headDim);
    return { ...source, half: isHalf(q), tokens, queryHeads };
  }

  /** Takes K or V of new tokens in, as many at a time as one upload or one binding holds. */
  #writeSide(targets: readonly WriteTarget[], data: TensorData | GpuTensor, side: "k" | "v"): void {
    const { kvHeads, headDim, layout } = this.#shape;
    const width = kvHeads * headDim;
    const half = isHalf(data);
    const kernel = this.#gpu.kernel("append", {
      D: headDim,
      BLOCK: rotationBlock(headDim),
      GROUP: layout.group,
      KV_HEADS: kvHeads,
      HALF: Number(half),
    });
    const most = isGpuTensor(data) ? this.#gpu.mostBytes : UPLOAD_BYTES;
    const tilesAtOnce = Math.max(1, Math.floor(most / (layout.group * width * (half ? 2 : 4))) - 1);
    for (const { key, items } of groupBy(targets, ({ block }) => [(block as GpuBlock).buffer])) {
      for (let i = 0; i < items.length; i += tilesAtOnce) {
        const some = items.slice(i, i + tilesAtOnce);
        const { at, from } = some[0];
        const tokens = some.reduce((sum, target) => sum + target.tokens, 0);
        const source = this.#source(data, "tokens", from, tokens, width);
        const table = this.#gpu.table(Uint32Array.from(some, ({ block }) => (block as GpuBlock).offset / 4));
        this.#gpu.dispatch({
          kernel,
          params: [tokens, at, source.word, side === "k" ? 0 : 1, rotationFactor(headDim)],
          bindings: [source.binding, table, { buffer: key[0] }],
          groups: [kvHeads, ...grid(tokens)],
        });
      }
    }
  }

  /** Some tokens of a call's tensor, as kernels see them: where it lies, or uploaded. */
  #source(
    data: TensorData | GpuTensor,
    name: string,
    from: number,
    tokens: number,
    width: number,
  ): { binding: Binding; word: number } {
    const bytesPerToken = width * (isHalf(data) ? 2 : 4);
    const bytes = tokens * bytesPerToken;
    if (isGpuTensor(data)) {
      this.#gpu.relyOnCaller();
      return bind(this.#gpu, data.buffer, (data.offset ?? 0) + from * bytesPerToken, bytes);
    }
    const buffer = this.#gpu.scratch(name, bytes);
    this.#gpu.write(
      buffer,
      0,
      data.subarray(from * width, (from + tokens) * width) as Float32Array<ArrayBuffer>,
    );
    return { binding: { buffer, size: bytes }, word: 0 };
  }

  #recordRuns(records: readonly Segment[]): readonly RecordRun[] {
    const { moves } = this.#gpu;
    if (this.#runs?.records !== records || this.#runs.moves !== moves) {
      const runs = groupBy(records, ({ block }) => [(block as GpuBlock).buffer]).map(({ key, items }) => {
        const tiles = items.flatMap(({ block, start }) => [(block as GpuBlock).offset / 4, start]);
        return { buffer: key[0], tiles: Uint32Array.from(tiles) };
      });
      this.#runs = { records, moves, runs };
    }
    return this.#runs.runs;
  }

  #put({ buffer, offset }: GpuBlock, data: Uint16Array | Uint8Array | Float32Array): void {
    this.#gpu.write(buffer, offset, data as Uint8Array<ArrayBuffer>);
  }
}

function exactRuns(segments: readonly Segment[]): readonly ExactRun[] {
  return groupBy(segments, ({ block }) => [(block as GpuBlock).buffer]).map(({ key, items }) => {
    const tiles = items.flatMap(({ block, start, tokens }) => [
      (block as GpuBlock).offset / 4,
      start,
      tokens,
    ]);
    return { buffer: key[0], tiles: Uint32Array.from(tiles) };
  });
}

/** Items by key, in the order in which keys first come. */
function groupBy<T, K>(
  items: readonly T[],
  keyOf: (item: T) => readonly K[],
): { key: readonly K[]; items: T[] }[] {
  const groups: { key: readonly K[]; items: T[] }[] = [];
  for (const item of items) {
    const key = keyOf(item);
    const group = groups.find((one) => one.key.every((part, i) => part === key[i]));
    if (group) group.items.push(item);
    else groups.push({ key, items: [item] });
  }
  return groups;
}

/** Part of a caller's buffer: bindings begin at multiples of 256 bytes, so a few words may lie before it. */
function bind(
  gpu: Gpu,
  buffer: GPUBuffer,
  offset: number,
  bytes: number,
): { binding: Binding; word: number } {
  const step = gpu.device.limits.minStorageBufferOffsetAlignment;
  const start = Math.floor(offset / step) * step;
  return { binding: { buffer, offset: start, size: offset - start + bytes }, word: (offset - start) / 4 };
}

function isHalf(data: TensorData | GpuTensor): boolean {
  return isGpuTensor(data) ? data.type === "f16" : data instanceof Uint16Array;
}

/** What a rotated row is multiplied by. */
function rotationFactor(headDim: number): number {
  return floatBits(1 / Math.sqrt(rotationBlock(headDim)));
}
