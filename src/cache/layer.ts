/**
 * One layer of a cache: a list of tiles of `group` tokens. Tile 0 is the sink. Then come tiles that a sliding window
 * has let go (their places stay, empty), then records, then exact tiles, the tail, the last of them partly filled.
 */
import type { Block, Budget, Outliers, Segment, Store, TilePair, WriteTarget } from "../backend.js";
import { halfBytesPerToken, type LayerCounts, tileRecordBytes } from "../bytes.js";
import type { Encoder, ResolvedLayer } from "../config.js";
import { KvarnError } from "../errors.js";
import type { GpuTensor, TensorData } from "../tensor.js";
import { squares, triangles } from "./moments.js";
import { OutlierPool } from "./outliers.js";
import type { SavedLayer } from "./serialize.js";
import { encodedTiles, keptFrom, visibleFrom } from "./schedule.js";

/** How much larger a tile that fills up gets at a time while the cache is too small for whole tiles. */
const GROWTH = 1.25;

/** What a layer holds. */
interface LayerState {
  /** By tile; undefined where a sliding window let go. */
  readonly tiles: (Block | undefined)[];
  readonly length: number;
  readonly firstKept: number;
  readonly firstTail: number;
  readonly outliers: OutlierPool;
  readonly moments: Block | undefined;
}

/** What encoding takes: where records go, and which tokens stay exact beside them. */
interface Encoding {
  readonly pairs: readonly TilePair[];
  /** The layer's outlier tokens then. */
  readonly outliers: OutlierPool;
}

export class CacheLayer {
  readonly config: ResolvedLayer;
  readonly store: Store;
  readonly #group: number;
  readonly #exactWindow: number;
  readonly #takesQueries: boolean;
  readonly #budget: Budget;
  /** By tile; undefined where a sliding window let go. */
  #tiles: (Block | undefined)[] = [];
  #length = 0;
  /** First tile after the sink that is still held. */
  #firstKept = 1;
  /** First tile of the tail: exact from here on. At least 1. */
  #firstTail = 1;
  #outliers: OutlierPool;
  /** Of the queries seen, also of tokens that were cut since: what later tiles are encoded by. */
  #moments: Block | undefined;
  /** Memory that was set aside for a known capacity: kept when tiles give it up. */
  readonly #setAside = new Set<Block>();
  /** The part of it that no tile uses. */
  readonly #spare: Block[] = [];
  #blockBytes = 0;
  /** The encoded tiles from tile `from` on, as long as they stay the same. */
  #records: { readonly from: number; readonly segments: readonly Segment[] } | undefined;
  /** Why the layer was put back to what it was before a call, each time. */
  readonly #undone: unknown[] = [];
  #isDisposed = false;

  constructor(
    config: ResolvedLayer,
    store: Store,
    { exactWindow, encoder }: { readonly exactWindow: number; readonly encoder: Encoder },
    budget: Budget,
  ) {
    this.config = config;
    this.store = store;
    this.#group = config.layout.group;
    this.#exactWindow = exactWindow;
    this.#takesQueries = encoder === "refined";
    this.#budget = budget;
    this.#outliers = OutlierPool.empty(config.kvHeads);
  }

  /** Tokens. */
  get length(): number {
    return this.#length;
  }

  /** How often what calls have done was taken back. */
  get timesUndone(): number {
    return this.#undone.length;
  }

  /** Throws the reason if anything was taken back since {@link timesUndone} was `times`. */
  checkKept(times: number): void {
    if (this.#undone.length > times) throw this.#undone[times];
  }

  get counts(): LayerCounts {
    const sinkIsRecord = this.#tiles[0]?.kind === "record";
    const sink = sinkIsRecord ? 0 : Math.min(this.#length, this.#group);
    const records = this.#firstTail - this.#firstKept + (sinkIsRecord ? 1 : 0);
    const tail = Math.max(0, this.#length - this.#firstTail * this.#group);
    return { sink, tail, records, outliers: this.#outliers.count, hasMoments: this.#moments !== undefined };
  }

  /** Bytes of all blocks, in use or set aside, and what the engine and this layer hold besides. */
  get reservedBytes(): number {
    return this.#blockBytes + this.store.slackBytes + this.#outliers.data.byteLength;
  }

  /** Tokens that stay exact beside the records; undefined where there are none. */
  get outliers(): Outliers | undefined {
    return this.#outliers.count === 0 ? undefined : this.#outliers;
  }

  /** Gives moments of our own, for queries to be added; undefined where none are taken. */
  get moments(): (() => Block) | undefined {
    return this.#takesQueries ? () => this.#ownMoments() : undefined;
  }

  #ownMoments(): Block {
    const shared = this.#moments;
    if (shared?.owners === 1) return shared;
    const own = this.#allocateMoments();
    this.#transact((made) => {
      made.push(own);
      if (shared) this.store.copy(shared, own, 0);
      return () => {
        this.#drop(shared);
        this.#moments = own;
      };
    });
    return own;
  }

  /** The tokens, `[start, end)`, that are records. */
  get recordRange(): { start: number; end: number } {
    const start = this.#tiles[0]?.kind === "record" && this.#firstKept === 1 ? 0 : this.#firstKept;
    return { start: start * this.#group, end: Math.max(start, this.#firstTail) * this.#group };
  }

  /** First position whose token is surely held, the sink aside; everything is when it is 0. */
  get goneUntil(): number {
    return this.#firstKept === 1 ? 0 : this.#firstKept * this.#group;
  }

  /** Bytes that {@link setAside} takes. */
  bytesAside(tokens: number): number {
    const { exact, records } = this.#blocksFor(tokens);
    return exact * this.#group * halfBytesPerToken(this.config) + records * tileRecordBytes(this.config);
  }

  /** Takes memory for `tokens` tokens now. */
  setAside(tokens: number): void {
    const { exact, records } = this.#blocksFor(tokens);
    for (let i = 0; i < exact; i++) this.#spare.push(this.#allocate("exact", this.#group));
    for (let i = 0; i < records; i++) this.#spare.push(this.#allocate("record", this.#group));
    for (const block of this.#spare) this.#setAside.add(block);
  }

  /** Encodes what is due, then adds tokens. All or nothing. */
  append(k: TensorData | GpuTensor, v: TensorData | GpuTensor, tokens: number): void {
    this.#transact((made) => {
      this.store.check?.(k, v);
      const encoding = this.#prepareEncoding(made);
      const targets = this.#allocateTail(tokens, made);
      this.store.write(targets, k, v);
      this.#encode(encoding);
      return () => {
        this.#putRecords(encoding);
        targets.forEach(({ block, from }) =>
          this.#put(Math.floor((this.#length + from) / this.#group), block),
        );
        this.#length += tokens;
      };
    });
  }

  /** Encodes what is due. All or nothing. */
  flush(): void {
    this.#transact((made) => {
      const encoding = this.#prepareEncoding(made);
      this.#encode(encoding);
      return () => this.#putRecords(encoding);
    });
  }

  /** The visible tokens from position `from` on, tile by tile, encoded ones and exact ones. */
  segments(from: number): { records: readonly Segment[]; exact: readonly Segment[] } {
    const first = Math.floor(from / this.#group);
    if (this.#records?.from !== first) {
      const segments = this.#segments(first, this.#firstTail);
      this.#records = { from: first, segments: segments.filter(({ block }) => block.kind === "record") };
    }
    const sink = first === 0 ? this.#segments(0, 1) : [];
    const tail = this.#segments(Math.max(first, this.#firstTail), this.#tiles.length);
    return {
      records: this.#records.segments,
      exact: [...sink, ...tail].filter(({ block }) => block.kind === "exact"),
    };
  }

  #segments(from: number, to: number): Segment[] {
    const segments: Segment[] = [];
    for (let tile = from; tile < Math.min(to, this.#tiles.length); tile++) {
      segments.push({ block: this.#tiles[tile]!, start: tile * this.#group, tokens: this.#tokensIn(tile) });
    }
    return segments;
  }

  /** Throws unless the layer can be cut to `length` tokens. */
  checkCut(length: number, layer: number): void {
    const group = this.#group;
    const tail = this.#firstTail * group;
    const sink = this.#tiles[0]?.kind === "record" ? 0 : group;
    const inExact = length <= sink || length >= tail;
    const atBoundary = length % group === 0;
    const windowHeld = length <= group || visibleFrom(length, this.config.slidingWindow) >= this.goneUntil;
    if (length <= this.#length && (inExact || atBoundary) && windowHeld) return;
    const cuts = [`0 to ${Math.min(sink, this.#length)}`];
    const held = this.goneUntil === 0 ? group : this.goneUntil + this.config.slidingWindow - 1;
    const boundary = Math.ceil(held / group) * group;
    if (this.#firstTail > 1 && boundary <= tail)
      cuts.push(`multiples of ${group} from ${boundary} to ${tail}`);
    if (this.#length > tail && held <= this.#length) cuts.push(`${Math.max(tail, held)} to ${this.#length}`);
    throw new KvarnError(
      "unsupported-length",
      `layer ${layer} holds ${this.#length} tokens and cannot be cut to ${length}; it can be cut to ${cuts.join(", ")}`,
    );
  }

  /** Drops the tokens from `length` on; {@link checkCut} has allowed it. */
  cut(length: number): void {
    const tiles = Math.ceil(length / this.#group);
    for (const block of this.#tiles.splice(tiles)) this.#drop(block);
    this.#records = undefined;
    this.#length = length;
    this.#firstTail = Math.max(1, Math.min(this.#firstTail, tiles));
    this.#firstKept = Math.min(this.#firstKept, this.#firstTail);
    this.#outliers = this.#outliers.within(0, length);
  }

  /** Takes the tiles of another layer of the same shape, as shared ones. */
  share(other: CacheLayer): void {
    this.#become(other.#state());
    for (const block of [...this.#tiles, this.#moments]) if (block) this.#hold(block);
  }

  /** Throws unless encoded tiles may follow. */
  checkImport(layer: number): void {
    if (this.#length % this.#group === 0 && this.#length <= this.#firstTail * this.#group) return;
    throw new KvarnError(
      "unsupported-length",
      `records can follow the full sink or other records only, but layer ${layer} holds ${this.#length} tokens, ` +
        `those from ${this.#firstTail * this.#group} on not encoded: flush or truncate first`,
    );
  }

  /** Adds encoded tiles; {@link checkImport} has allowed it. All or nothing. */
  import(tiles: readonly Uint8Array[]): void {
    const first = this.#length / this.#group;
    this.#transact((made) => {
      const blocks = tiles.map((records) => {
        const block = this.#acquire("record", this.#group, made);
        this.store.writeRecord(block, records);
        return block;
      });
      return () => {
        blocks.forEach((block, i) => this.#put(first + i, block));
        this.#length += blocks.length * this.#group;
        this.#firstTail = first + blocks.length;
        this.#letGo();
      };
    });
  }

  /** Records of the encoded tiles in order. */
  async readRecords(): Promise<Uint8Array[]> {
    const { start, end } = this.recordRange;
    const blocks = this.#tiles.slice(start / this.#group, end / this.#group) as Block[];
    return Promise.all(blocks.map((block) => this.store.readRecord(block)));
  }

  /** Everything that a saved cache keeps of the layer. */
  async save(): Promise<SavedLayer> {
    const [length, firstKept, firstTail] = [this.#length, this.#firstKept, this.#firstTail];
    const [tokens, moments] = await Promise.all([
      this.readTokens(),
      this.#moments && this.store.readMoments(this.#moments),
    ]);
    return { length, firstKept, firstTail, ...tokens, moments: moments && triangles(moments, this.config) };
  }

  /** What a saved cache keeps of the layer's tokens. */
  async readTokens(): Promise<Pick<SavedLayer, "tiles" | "outliers">> {
    const { outliers } = this;
    const tiles = await Promise.all(this.#tiles.map((block, tile) => this.#readTile(block, tile)));
    return { tiles, outliers };
  }

  /** Fills an empty layer with what {@link save} returned. */
  load(saved: SavedLayer): void {
    this.#transact((made) => {
      const blocks = saved.tiles.map((data, tile) => {
        if (!data) return undefined;
        if (data instanceof Uint8Array) {
          const record = this.#acquire("record", this.#group, made);
          this.store.writeRecord(record, data);
          return record;
        }
        const tokens = Math.min(this.#group, saved.length - tile * this.#group);
        const exact = this.#acquire("exact", this.#tailCapacity(tokens), made);
        this.store.writeExact(exact, data);
        return exact;
      });
      const { kvHeads, headDim } = this.config;
      const outliers = saved.outliers ? OutlierPool.of(saved.outliers, headDim) : OutlierPool.empty(kvHeads);
      if (saved.moments) this.store.writeMoments(this.#ownMoments(), squares(saved.moments, this.config));
      return () => this.#become({ ...saved, tiles: blocks, outliers, moments: this.#moments });
    });
  }

  /** Gives back what the engine can spare. */
  trimStore(): void {
    this.store.trim();
  }

  /** Gives back the room that the newest tile has left, if a smaller block is to be had for the time of the copy. */
  trimTile(): void {
    const tile = this.#tiles.length - 1;
    const block = this.#tiles[tile];
    const tokens = this.#tokensIn(tile);
    if (block?.kind !== "exact" || block.owners > 1 || this.#setAside.has(block) || block.capacity === tokens)
      return;
    try {
      this.#transact((made) => {
        const smaller = this.#acquire("exact", tokens, made);
        this.store.copy(block, smaller, tokens);
        return () => this.#put(tile, smaller);
      });
    } catch (error) {
      // No smaller block for the time of the copy. The tokens stay where they are: what called this has taken effect.
      if (!(error instanceof KvarnError && error.code === "out-of-memory")) throw error;
    }
  }

  dispose(): void {
    this.#isDisposed = true;
    this.cut(0);
    for (const block of this.#spare.splice(0)) this.#free(block);
    if (this.#moments) this.#drop(this.#moments);
    this.#moments = undefined;
    this.store.dispose();
  }

  /** Exact are the sink, the tile that fills up, the one that waits for its encoding, and the exact window. */
  #blocksFor(tokens: number): { exact: number; records: number } {
    const tiles = Math.ceil(tokens / this.#group);
    const exact = Math.min(tiles, 3 + Math.ceil(this.#exactWindow / this.#group));
    return { exact, records: Math.max(0, tiles - 1) };
  }

  async #readTile(block: Block | undefined, tile: number): Promise<Uint8Array | Uint16Array | undefined> {
    if (!block) return undefined;
    return block.kind === "record"
      ? this.store.readRecord(block)
      : this.store.readExact(block, this.#tokensIn(tile));
  }

  #tokensIn(tile: number): number {
    return Math.min(this.#group, this.#length - tile * this.#group);
  }

  /**
   * Runs `prepare`, which may allocate and write where no token lies yet, and then, when nothing has thrown, the
   * commit that it returns, which cannot fail. Otherwise what was allocated goes back. Where the engine cannot tell yet
   * whether the memory is there, the layer is put back should it turn out that it is not.
   */
  #transact(prepare: (made: Block[]) => () => void): void {
    const made: Block[] = [];
    let commit: () => void;
    try {
      commit = prepare(made);
    } catch (error) {
      for (const block of made) this.#drop(block);
      throw error;
    }
    const { doubt } = this.store;
    const undo = doubt && this.#remember();
    commit();
    doubt?.then(
      () => undo?.(),
      (error: unknown) => undo?.(error),
    );
  }

  /** Holds what the layer holds now, until it is told whether to go back to it: given an error, it does. */
  #remember(): (error?: unknown) => void {
    const state = this.#state();
    const undone = this.#undone.length;
    const held = [...state.tiles, state.moments];
    for (const block of held) if (block) this.#hold(block);
    return (error) => {
      // Later calls that were built on this one have been taken back with it.
      if (error !== undefined && this.#undone.length === undone && !this.#isDisposed) {
        this.#undone.push(error);
        const dropped = [...this.#tiles, this.#moments];
        this.#become(state);
        for (const block of dropped) this.#drop(block);
      } else {
        for (const block of held) this.#drop(block);
      }
    };
  }

  #state(): LayerState {
    const [tiles, outliers, moments] = [this.#tiles.slice(), this.#outliers, this.#moments];
    const [length, firstKept, firstTail] = [this.#length, this.#firstKept, this.#firstTail];
    return { tiles, length, firstKept, firstTail, outliers, moments };
  }

  #become({ tiles, length, firstKept, firstTail, outliers, moments }: LayerState): void {
    this.#tiles = tiles;
    this.#outliers = outliers;
    this.#moments = moments;
    this.#records = undefined;
    this.#length = length;
    this.#firstKept = firstKept;
    this.#firstTail = firstTail;
  }

  #hold(block: Block): void {
    block.owners++;
    this.#blockBytes += block.bytes;
  }

  /** Memory for the records of every tile that is due, and the outlier tokens among all of them. */
  #prepareEncoding(made: Block[]): Encoding {
    const pairs: TilePair[] = [];
    let outliers = this.#outliers;
    // Tiles that the window has passed already are not worth their encoding, but tokens of them may have outdone others.
    const first = Math.max(this.#firstTail, this.#keptTile());
    for (let tile = this.#firstTail; tile < this.#due; tile++) {
      const exact = this.#tiles[tile]!;
      const chosen = this.#chooseOutliers(outliers, exact, tile);
      outliers = chosen.outliers;
      if (tile < first) continue;
      pairs.push({ exact, record: this.#acquire("record", this.#group, made), outliers: chosen.places });
    }
    return { pairs, outliers };
  }

  /** The outlier tokens of one tile more: their places in it, and all of them. */
  #chooseOutliers(
    held: OutlierPool,
    exact: Block,
    tile: number,
  ): { places?: number[][]; outliers: OutlierPool } {
    const { outlierTokens, slidingWindow } = this.config;
    if (outlierTokens === 0) return { outliers: held };
    const start = tile * this.#group;
    // As a query at the tile's end has it, however many tiles are due: so the tokens chosen do not hang on that.
    const visible = visibleFrom(start + this.#group - 1, slidingWindow);
    const outliers = held.within(visible - (visible % this.#group));
    if (outliers.isFull(outlierTokens)) return { outliers };
    const places = outliers.choose(outlierTokens, this.store.keyNorms!(exact));
    const read = (head: number, token: number) => this.store.readHeadToken!(exact, head, token);
    return { places, outliers: outliers.with(start, places, read) };
  }

  /** Where the tail is to begin: behind every tile that is due. */
  get #due(): number {
    return Math.max(this.#firstTail, encodedTiles(this.#length, this.#exactWindow, this.#group));
  }

  /** Encodes tiles into records that nothing refers to yet. */
  #encode({ pairs }: Encoding): void {
    if (pairs.length > 0) this.store.encode(pairs, this.#moments);
  }

  /** Puts records in place of the tiles that they were made of, and lets go what no later query sees. */
  #putRecords({ pairs, outliers }: Encoding): void {
    const due = this.#due;
    pairs.forEach(({ record }, i) => this.#put(due - pairs.length + i, record));
    this.#firstTail = due;
    this.#outliers = outliers;
    this.#letGo();
  }

  /** First tile that a later query can see. */
  #keptTile(): number {
    return Math.floor(keptFrom(this.#length, this.#exactWindow, this.config.slidingWindow) / this.#group);
  }

  #letGo(): void {
    const kept = Math.min(this.#keptTile(), this.#firstTail);
    for (; this.#firstKept < kept; this.#firstKept++) {
      this.#drop(this.#tiles[this.#firstKept]);
      this.#tiles[this.#firstKept] = undefined;
      this.#records = undefined;
    }
    if (this.#firstKept > 1) this.#outliers = this.#outliers.within(this.#firstKept * this.#group);
  }

  /** Room for new tokens behind the last one, tile by tile. */
  #allocateTail(tokens: number, made: Block[]): WriteTarget[] {
    const targets: WriteTarget[] = [];
    for (let from = 0; from < tokens;) {
      const tile = Math.floor((this.#length + from) / this.#group);
      const at = (this.#length + from) % this.#group;
      const count = Math.min(this.#group - at, tokens - from);
      targets.push({
        block: this.#tailBlock(this.#tiles[tile], at, at + count, made),
        at,
        from,
        tokens: count,
      });
      from += count;
    }
    return targets;
  }

  /** The block of a partly filled tile: the present one, or a larger one or one of our own with the same tokens. */
  #tailBlock(old: Block | undefined, tokens: number, needed: number, made: Block[]): Block {
    if (old && old.owners === 1 && old.capacity >= needed) return old;
    const block = this.#acquire("exact", this.#tailCapacity(needed), made);
    if (old) this.store.copy(old, block, tokens);
    return block;
  }

  /**
   * Room for a tile of which `needed` tokens are filled: all of it where that is little against the whole cache, so
   * that a long context allocates once a tile; else in steps; else what it takes.
   */
  #tailCapacity(needed: number): number {
    const perToken = halfBytesPerToken(this.config);
    const steps = [this.#group, Math.min(this.#group, Math.floor(needed * GROWTH))];
    return steps.find((capacity) => this.#budget((capacity - needed) * perToken)) ?? needed;
  }

  /** A block of our own: one set aside, or a new one. */
  #acquire(kind: "exact" | "record", capacity: number, made: Block[]): Block {
    const spare = this.#spare.findIndex((block) => block.kind === kind && block.capacity >= capacity);
    const block = spare >= 0 ? this.#spare.splice(spare, 1)[0] : this.#allocate(kind, capacity);
    made.push(block);
    return block;
  }

  #allocate(kind: "exact" | "record", capacity: number): Block {
    const block = kind === "exact" ? this.store.allocateExact(capacity) : this.store.allocateRecord();
    this.#blockBytes += block.bytes;
    return block;
  }

  #allocateMoments(): Block {
    const block = this.store.allocateMoments();
    this.#blockBytes += block.bytes;
    return block;
  }

  #free(block: Block): void {
    this.#blockBytes -= block.bytes;
    this.store.free(block);
  }

  #put(tile: number, block: Block): void {
    if (this.#tiles[tile] === block) return;
    this.#drop(this.#tiles[tile]);
    this.#tiles[tile] = block;
    this.#records = undefined;
  }

  #drop(block: Block | undefined): void {
    if (!block) return;
    if (block.owners > 1) {
      block.owners--;
      this.#blockBytes -= block.bytes;
    } else if (this.#setAside.has(block)) {
      this.#spare.push(block);
    } else {
      this.#free(block);
    }
  }
}
