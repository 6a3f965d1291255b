/** Tiles of one layer shape in WASM memory. */
import type { AttendRequest, Block, Segment, Store, StoreShape, TilePair, WriteTarget } from "../backend.js";
import { halfBytesPerToken, momentBytes } from "../bytes.js";
import { fromHalf, toHalf } from "../half.js";
import { nonFiniteError, type TensorData } from "../tensor.js";
import type { Heap, Range } from "./heap.js";
import type { Kernels } from "./module.js";
import { hiddenTokens, outlierRuns } from "./outliers.js";
import type { Cut, Tasks } from "./tasks.js";
import type { Workspace } from "./workspace.js";

/** Elements of the kernels' tile memory, which also takes tokens in. */
export const TILE_ELEMENTS = 512 * 128;

/** Query elements that one pass over the cache works on: few enough to stay in a processor's cache. */
const QUERY_ELEMENTS = 1 << 18;

/** Windows and positions are 32-bit in the kernels; a window of this size is none. */
const NO_WINDOW = 0x7fffffff;

class WasmBlock implements Block {
  owners = 1;

  constructor(
    readonly kind: Block["kind"],
    readonly capacity: number,
    readonly range: Range,
  ) {}

  get bytes(): number {
    return this.range.bytes;
  }
}

/** Where the fields of a head's record lie. */
type HeadRecord = Record<
  "kCodes" | "kScale" | "kZero" | "kToken" | "vCodes" | "vScale" | "vToken" | "vZero",
  number
>;

/** Where a row of an exact token lies, and what was there. */
interface ExactRow {
  readonly at: number;
  readonly row: Uint16Array;
}

/** The rows of queries of one KV head, and what attention makes of them: see `assembly/attend.ts`. */
interface QueryRows {
  readonly rows: number;
  readonly queries: number;
  readonly sums: number;
  readonly states: number;
}

export class WasmStore implements Store {
  readonly slackBytes = 0;
  readonly doubt = undefined;
  readonly #kernels: Kernels;
  readonly #tasks: Tasks;
  readonly #heap: Heap;
  readonly #workspace: Workspace;
  readonly #shape: StoreShape;
  readonly #attendRecord: "attendRecord" | "attendRecordF32";
  /** Bytes of one exact token. */
  readonly #tokenBytes: number;

  constructor(
    kernels: Kernels,
    tasks: Tasks,
    heap: Heap,
    workspace: Workspace,
    shape: StoreShape,
    f32: boolean,
  ) {
    this.#kernels = kernels;
    this.#tasks = tasks;
    this.#heap = heap;
    this.#workspace = workspace;
    this.#shape = shape;
    this.#attendRecord = f32 ? "attendRecordF32" : "attendRecord";
    this.#tokenBytes = halfBytesPerToken(shape);
  }

  allocateExact(capacity: number): Block {
    return new WasmBlock("exact", capacity, this.#heap.allocate(capacity * this.#tokenBytes));
  }

  allocateRecord(): Block {
    const { kvHeads, layout } = this.#shape;
    return new WasmBlock("record", layout.group, this.#heap.allocate(kvHeads * layout.bytes));
  }

  allocateMoments(): Block {
    const range = this.#heap.allocate(momentBytes(this.#shape));
    this.#floats(range.address, range.bytes / 4).fill(0);
    return new WasmBlock("moments", 0, range);
  }

  free(block: Block): void {
    this.#heap.free((block as WasmBlock).range);
  }

  write(targets: readonly WriteTarget[], k: TensorData, v: TensorData): void {
    for (const { block, at, from, tokens } of targets) {
      const target = address(block) + at * this.#tokenBytes;
      this.#writeTokens("k", k, from, tokens, target);
      this.#writeTokens("v", v, from, tokens, target + this.#tokenBytes / 2);
    }
    this.#tasks.finish();
  }

  copy(source: Block, target: Block, tokens: number): void {
    const start = address(source);
    const bytes = source.kind === "moments" ? source.bytes : tokens * this.#tokenBytes;
    this.#bytes().copyWithin(address(target), start, start + bytes);
  }

  encode(tiles: readonly TilePair[], moments?: Block): void {
    const replacing = tiles.some(({ outliers }) => outliers);
    const sumBytes = replacing ? this.#shape.headDim * 8 : 0;
    const roomBytes = sumBytes + (moments?.bytes ?? 0);
    const sums = roomBytes > 0 ? this.#workspace.take(roomBytes) : 0;
    const factors = moments && this.#factorQueries(moments, sums + sumBytes);
    const replaced: ExactRow[] = [];
    try {
      for (const tile of tiles) this.#replaceOutliers(tile, sums, replaced);
      for (const { exact, record } of tiles) this.#encode(exact, record, factors);
      this.#tasks.finish();
    } finally {
      for (const { at, row } of replaced) this.#put(row, at);
    }
  }

  /**
   * Puts the mean of a head's other tokens in place of its outliers. Nobody sees it but the kernels: the block is as it was
   * when the call that encodes it returns.
   * @param sums room for a head in f64
   * @param replaced takes what was there
   */
  #replaceOutliers({ exact, outliers = [] }: TilePair, sums: number, replaced: ExactRow[]): void {
    const { headDim, layout } = this.#shape;
    const stride = this.#tokenBytes;
    for (const [head, places] of outliers.entries()) {
      if (places.length === 0) continue;
      const { keys, values } = this.#headTokens(exact, head);
      for (const source of [keys, values]) {
        const taken = places.map((place): ExactRow => {
          const at = source + place * stride;
          return { at, row: this.#halves(at, headDim).slice() };
        });
        this.#kernels.sumTokens(source, stride, layout.group, headDim, sums);
        const mean = this.#doubles(sums, headDim).map((sum, channel) => {
          const others = taken.reduce((left, { row }) => left - fromHalf(row[channel]), sum);
          return others / (layout.group - places.length);
        });
        replaced.push(...taken);
        for (const { at } of taken) this.#put(Uint16Array.from(mean, toHalf), at);
      }
    }
  }

  /** Of each KV head, where what encoding needs of the queries seen lies, at `target` and on; 0 where there are none. */
  #factorQueries(moments: Block, target: number): number[] {
    const { kvHeads, headDim } = this.#shape;
    const size = headDim * headDim * 4;
    return Array.from({ length: kvHeads }, (_, head) => {
      const factor = target + head * size;
      return this.#kernels.factorQueries(address(moments) + head * size, headDim, factor) ? factor : 0;
    });
  }

  addQueries(moments: Block, q: TensorData, queryHeads: number): void {
    const { kvHeads, headDim } = this.#shape;
    const rowBytes = headDim * q.BYTES_PER_ELEMENT;
    const perHead = queryHeads / kvHeads;
    const step = Math.max(1, Math.floor(QUERY_ELEMENTS / (queryHeads * headDim))) * queryHeads * headDim;
    for (let first = 0; first < q.length; first += step) {
      const part = q.subarray(first, first + step);
      const source = this.#workspace.take(part.byteLength);
      this.#put(part, source);
      const tokens = part.length / (queryHeads * headDim);
      for (let head = 0; head < kvHeads; head++) {
        this.#kernels.addQueries(
          source + head * perHead * rowBytes,
          q instanceof Uint16Array,
          tokens,
          perHead,
          queryHeads * rowBytes,
          headDim,
          address(moments) + head * headDim * headDim * 4,
        );
      }
    }
  }

  async readMoments(block: Block): Promise<Float32Array> {
    return this.#floats(address(block), block.bytes / 4).slice();
  }

  writeMoments(block: Block, data: Float32Array): void {
    this.#put(data, address(block));
  }

  #encode(exact: Block, record: Block, factors: readonly number[] | undefined): void {
    const { kvHeads, headDim, layout, encoder, iterations } = this.#shape;
    const { group, keyBits, valueBits } = layout;
    const cost = this.#encodingCost();
    const { kernels } = this.#tasks;
    for (let head = 0; head < kvHeads; head++) {
      const { keys, values } = this.#headTokens(exact, head);
      const { kCodes, kScale, kZero, kToken, vCodes, vScale, vToken, vZero } = this.#headRecord(record, head);
      const keyTile = [keys, this.#tokenBytes, headDim, group, keyBits, iterations] as const;
      const keyFields = [kCodes, kScale, kZero, kToken];
      const valueTile = [values, this.#tokenBytes, headDim, group, valueBits, iterations] as const;
      const valueFields = [vCodes, vScale, vToken, vZero];
      this.#tasks.begin(cost);
      if (encoder === "strict") kernels.encodeKeys(...keyTile, ...keyFields);
      else kernels.refineKeys(...keyTile, factors?.[head] ?? 0, ...keyFields);
      this.#tasks.begin(cost);
      if (encoder === "strict") kernels.encodeValues(...valueTile, ...valueFields);
      else kernels.refineValues(...valueTile, ...valueFields);
    }
  }

  encodeTokens(tiles: readonly TilePair[], k: TensorData, v: TensorData, from: number): Uint8Array[] {
    const float = k instanceof Float32Array && v instanceof Float32Array;
    if (!float || !this.#encodeNew(tiles, k, v, from)) {
      // This throws where they are not finite.
      const { group: tokens } = this.#shape.layout;
      const targets = tiles.map(({ exact }, i) => {
        return { block: exact, at: 0, from: from + i * tokens, tokens };
      });
      this.write(targets, k, v);
      this.encode(tiles);
    }
    return tiles.map(({ record }) => this.#record(record));
  }

  /** Without exact tokens on the way; false where some are not finite. */
  #encodeNew(tiles: readonly TilePair[], k: Float32Array, v: Float32Array, from: number): boolean {
    const { kvHeads, headDim, layout, iterations } = this.#shape;
    const { group, keyBits, valueBits } = layout;
    const perToken = kvHeads * headDim;
    const cost = this.#encodingCost();
    let finite = true;
    const onBad = () => {
      finite = false;
    };
    const encode = (
      kernel: "encodeNewKeys" | "encodeNewValues",
      data: Float32Array,
      bits: number,
      fieldsOf: (head: HeadRecord) => number[],
    ): void => {
      tiles.forEach(({ exact: room, record }, i) => {
        const start = (from + i * group) * perToken;
        const source = address(room);
        this.#put(data.subarray(start, start + group * perToken), source);
        for (let head = 0; head < kvHeads; head++) {
          const fields = fieldsOf(this.#headRecord(record, head));
          const at = source + head * headDim * 4;
          this.#tasks.begin(cost);
          const tile = [headDim, group, bits, iterations, ...fields];
          this.#tasks.encodeNew(kernel, onBad, at, perToken * 4, ...tile);
        }
        this.#tasks.share();
      });
      this.#tasks.finish();
    };
    encode("encodeNewKeys", k, keyBits, ({ kCodes, kScale, kZero, kToken }) => [
      kCodes,
      kScale,
      kZero,
      kToken,
    ]);
    if (!finite) return false;
    encode("encodeNewValues", v, valueBits, ({ vCodes, vScale, vToken, vZero }) => [
      vCodes,
      vScale,
      vToken,
      vZero,
    ]);
    return finite;
  }

  keyNorms(block: Block): Float64Array {
    const { kvHeads, headDim, layout } = this.#shape;
    const norms = this.#workspace.take(kvHeads * layout.group * 8);
    for (let head = 0; head < kvHeads; head++) {
      const { keys } = this.#headTokens(block, head);
      const target = norms + head * layout.group * 8;
      this.#kernels.keyNorms(keys, this.#tokenBytes, layout.group, headDim, target);
    }
    return this.#doubles(norms, kvHeads * layout.group).slice();
  }

  readHeadToken(block: Block, head: number, token: number): Uint16Array {
    const { headDim } = this.#shape;
    const { keys, values } = this.#headTokens(block, head);
    const result = new Uint16Array(2 * headDim);
    [keys, values].forEach((source, i) => {
      result.set(this.#halves(source + token * this.#tokenBytes, headDim), i * headDim);
    });
    return result;
  }

  async readExact(block: Block, tokens: number): Promise<Uint16Array> {
    const start = address(block);
    return new Uint16Array(this.#bytes().slice(start, start + tokens * this.#tokenBytes).buffer);
  }

  writeExact(block: Block, data: Uint16Array): void {
    this.#bytes().set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), address(block));
  }

  async readRecord(block: Block): Promise<Uint8Array> {
    return this.#record(block).slice();
  }

  writeRecord(block: Block, records: Uint8Array): void {
    this.#bytes().set(records, address(block));
  }

  async decode(blocks: readonly Block[], k: Float32Array, v: Float32Array): Promise<void> {
    blocks.forEach((block, i) => this.#decode(block, k, v, i * this.#shape.layout.group));
  }

  #decode(block: Block, k: Float32Array, v: Float32Array, at: number): void {
    const { kvHeads, headDim, layout } = this.#shape;
    const { group, keyBits, valueBits } = layout;
    const length = group * kvHeads * headDim;
    const stride = kvHeads * headDim * 4;
    const out = this.#workspace.take(length * 4);
    const result = new Float32Array(this.#kernels.memory.buffer, out, length);
    const place = at * kvHeads * headDim;
    for (let head = 0; head < kvHeads; head++) {
      const { kCodes, kScale, kZero, kToken } = this.#headRecord(block, head);
      const target = out + head * headDim * 4;
      this.#kernels.decodeKeys(headDim, group, keyBits, kCodes, kScale, kZero, kToken, target, stride);
    }
    k.set(result, place);
    for (let head = 0; head < kvHeads; head++) {
      const { vCodes, vScale, vToken, vZero } = this.#headRecord(block, head);
      const target = out + head * headDim * 4;
      this.#kernels.decodeValues(headDim, group, valueBits, vCodes, vScale, vToken, vZero, target, stride);
    }
    v.set(result, place);
  }

  async attend(request: AttendRequest): Promise<void> {
    const perToken = request.queryHeads * this.#shape.headDim;
    const segments = [...request.records, ...request.exact];
    const cut = this.#tasks.cut(this.#shape.kvHeads, segments.length);
    // Each part of the sequence has sums of its own.
    const step = Math.max(1, Math.floor(QUERY_ELEMENTS / perToken / cut.parts));
    for (let first = 0; first < request.queryTokens; first += step) {
      const tokens = Math.min(step, request.queryTokens - first);
      this.#attendSome(request, segments, cut, first, tokens);
    }
    // What lies on a GPU never comes here.
    if (request.moments) this.addQueries(request.moments(), request.q as TensorData, request.queryHeads);
  }

  trim(): void {}

  dispose(): void {}

  /** Attention of `tokens` query tokens from `first` on. */
  #attendSome(
    request: AttendRequest,
    segments: readonly Segment[],
    { headsPerTask, parts }: Cut,
    first: number,
    tokens: number,
  ): void {
    const { queryHeads, sinkLogits, softmaxScale, softCap, slidingWindow, outliers } = request;
    const { kvHeads, headDim } = this.#shape;
    const kernels = this.#kernels;
    const rows = tokens * queryHeads;
    const perToken = queryHeads * headDim;
    const length = tokens * perToken;
    const outlierBytes = outliers?.data.byteLength ?? 0;
    const bytes = (2 + parts) * length * 4 + parts * rows * 8 + queryHeads * 4 + outlierBytes;
    const input = this.#workspace.take(bytes);
    const queries = input + length * 4;
    const sums = queries + length * 4;
    const states = sums + parts * length * 4;
    const sinks = states + parts * rows * 8;
    const exactOutliers = sinks + queryHeads * 4;
    if (outliers) this.#put(outliers.data, exactOutliers);

    // What lies on a GPU never comes here.
    const q = (request.q as TensorData).subarray(first * perToken, first * perToken + length);
    this.#put(q, input);
    const half = q instanceof Uint16Array;
    kernels.prepareQueries(
      input,
      half,
      tokens,
      queryHeads,
      kvHeads,
      headDim,
      softmaxScale,
      queries,
      sums,
      states,
    );
    const window = Math.min(slidingWindow, NO_WINDOW);
    const from = request.position + first;
    const hidden = outliers?.positions.map((positions) => hiddenTokens(positions, this.#shape.layout.group));
    const rowsOfHead = rows / kvHeads;
    const rowsOf = (part: number, head: number): QueryRows => {
      const row = part * rows + head * rowsOfHead;
      return {
        rows: rowsOfHead,
        queries: queries + head * rowsOfHead * headDim * 4,
        sums: sums + row * headDim * 4,
        states: states + row * 8,
      };
    };
    for (let part = 0; part < parts; part++) {
      const start = Math.floor((part * segments.length) / parts);
      const end = Math.floor(((part + 1) * segments.length) / parts);
      for (let firstHead = 0; firstHead < kvHeads; firstHead += headsPerTask) {
        const heads = Math.min(headsPerTask, kvHeads - firstHead);
        this.#tasks.begin(((end - start) * heads * rowsOfHead * headDim * this.#shape.layout.group) / 16);
        this.#tasks.kernels.setMask(queryHeads / kvHeads, from, window, softCap);
        if (part > 0) {
          const { sums, states } = rowsOf(part, firstHead);
          this.#tasks.clearRows(heads * rowsOfHead, headDim, sums, states);
        }
        // Tile by tile, and head by head within: as records lie, so that they stream in.
        for (const segment of segments.slice(start, end)) {
          for (let head = firstHead; head < firstHead + heads; head++) {
            const bits = hidden?.[head].get(segment.start);
            if (bits) this.#tasks.kernels.hideTokens(...bits);
            this.#attendSegment(segment, head, rowsOf(part, head));
            if (bits) this.#tasks.kernels.hideTokens(0, 0, 0, 0);
          }
        }
        if (!outliers || part < parts - 1) continue;
        for (let head = firstHead; head < firstHead + heads; head++) {
          const tokensBefore = outliers.positions.slice(0, head).reduce((sum, { length }) => sum + length, 0);
          for (const run of outlierRuns(outliers.positions[head], from, from + tokens - 1, window)) {
            const keys = exactOutliers + (tokensBefore + run.first) * 4 * headDim;
            const exact = { keys, values: keys + 2 * headDim, stride: 4 * headDim };
            this.#attendTokens(exact, run.start, run.tokens, rowsOf(part, head));
          }
        }
      }
    }
    this.#tasks.finish();
    this.#tasks.combineParts(parts, rows, headDim, sums, states);
    if (sinkLogits) this.#put(sinkLogits, sinks);
    kernels.finishQueries(tokens, queryHeads, kvHeads, headDim, sinkLogits ? sinks : 0, sums, states, input);
    (request.out as Float32Array).set(
      new Float32Array(kernels.memory.buffer, input, length),
      first * perToken,
    );
  }

  #attendSegment({ block, start, tokens }: Segment, head: number, target: QueryRows): void {
    const { headDim, layout } = this.#shape;
    if (block.kind === "exact") {
      const exact = { ...this.#headTokens(block, head), stride: this.#tokenBytes };
      this.#attendTokens(exact, start, tokens, target);
      return;
    }
    const { rows, queries, sums, states } = target;
    const at = address(block) + head * layout.bytes;
    this.#tasks.kernels[this.#attendRecord](
      headDim,
      layout.group,
      layout.keyBits,
      layout.valueBits,
      at + layout.kCodes,
      at + layout.kScale,
      at + layout.kZero,
      at + layout.kToken,
      at + layout.vCodes,
      at + layout.vScale,
      at + layout.vToken,
      at + layout.vZero,
      start,
      rows,
      queries,
      sums,
      states,
    );
  }

  #attendTokens(
    { keys, values, stride }: { keys: number; values: number; stride: number },
    start: number,
    tokens: number,
    { rows, queries, sums, states }: QueryRows,
  ): void {
    const { headDim } = this.#shape;
    this.#tasks.kernels.attendExact(
      headDim,
      tokens,
      keys,
      values,
      stride,
      start,
      rows,
      queries,
      sums,
      states,
    );
  }

  /** Takes tokens of K or V in, as many at a time as the kernels' tile memory holds. */
  #writeTokens(name: string, data: TensorData, from: number, tokens: number, target: number): void {
    const { kvHeads, headDim } = this.#shape;
    const perToken = kvHeads * headDim;
    const step = Math.floor(TILE_ELEMENTS / perToken);
    const half = data instanceof Uint16Array;
    for (let token = 0; token < tokens; token += step) {
      const count = Math.min(step, tokens - token);
      const start = (from + token) * perToken;
      const staging = this.#tasks.stage();
      this.#put(data.subarray(start, start + count * perToken), staging);
      const onBad = (row: number): never => {
        throw nonFiniteError(name, data, (from + token) * kvHeads + row, kvHeads, headDim);
      };
      const place = target + token * this.#tokenBytes;
      this.#tasks.writeTokens(onBad, staging, half, count, kvHeads, headDim, place, this.#tokenBytes);
    }
  }

  /** Where K and V of a head's first exact token lie. */
  #headTokens(block: Block, head: number): { keys: number; values: number } {
    const keys = address(block) + head * this.#shape.headDim * 2;
    return { keys, values: keys + this.#tokenBytes / 2 };
  }

  /** About how many nanoseconds one tile of a head takes. */
  #encodingCost(): number {
    const { headDim, layout, iterations } = this.#shape;
    return headDim * layout.group * (0.5 + iterations / 4);
  }

  #headRecord(block: Block, head: number): HeadRecord {
    const { layout } = this.#shape;
    const at = address(block) + head * layout.bytes;
    return {
      kCodes: at + layout.kCodes,
      kScale: at + layout.kScale,
      kZero: at + layout.kZero,
      kToken: at + layout.kToken,
      vCodes: at + layout.vCodes,
      vScale: at + layout.vScale,
      vToken: at + layout.vToken,
      vZero: at + layout.vZero,
    };
  }

  #put(data: TensorData, target: number): void {
    const buffer = this.#kernels.memory.buffer;
    if (data instanceof Float32Array) new Float32Array(buffer, target, data.length).set(data);
    else new Uint16Array(buffer, target, data.length).set(data);
  }

  #record(block: Block): Uint8Array {
    const start = address(block);
    return this.#bytes().subarray(start, start + this.#shape.kvHeads * this.#shape.layout.bytes);
  }

  #halves(at: number, length: number): Uint16Array {
    return new Uint16Array(this.#kernels.memory.buffer, at, length);
  }

  #floats(at: number, length: number): Float32Array {
    return new Float32Array(this.#kernels.memory.buffer, at, length);
  }

  #doubles(at: number, length: number): Float64Array {
    return new Float64Array(this.#kernels.memory.buffer, at, length);
  }

  #bytes(): Uint8Array {
    return new Uint8Array(this.#kernels.memory.buffer);
  }
}

function address(block: Block): number {
  return (block as WasmBlock).range.address;
}
