/** The WebAssembly kernels, `assembly/`, and their memory. */

/** What `assembly/index.ts` exports; pointers are bytes from the start of `memory`. */
interface Exports {
  readonly memory: WebAssembly.Memory;
  readonly heapStart: WebAssembly.Global<"i32">;
  dequantize(type: number, source: number, target: number, count: number): void;
  multiply(
    type: number,
    weights: number,
    rowBytes: number,
    rows: number,
    columns: number,
    x: number,
    tokens: number,
    y: number,
    scratch: number,
  ): void;
}

/** Weights in the kernels' memory: rows, `rowBytes` apart. */
export interface Matrix {
  /** GGUF's number of the type. */
  readonly type: number;
  readonly rows: number;
  readonly columns: number;
  readonly rowBytes: number;
  readonly address: number;
}

const PAGE = 65_536;
const ALIGNMENT = 64;

/** Of how many rows `multiply` makes a panel, and how many tokens it takes at a time. */
const PANEL_ROWS = 8;
const FOUR = 4;

/** One instance of the kernels, with a memory of its own, which goes when the instance does. */
export class Kernels {
  readonly #exports: Exports;
  #end: number;

  private constructor(exports: Exports) {
    this.#exports = exports;
    this.#end = exports.heapStart.value;
  }

  /** @param module `build/llama.wasm`, compiled */
  static async open(module: WebAssembly.Module): Promise<Kernels> {
    return new Kernels((await WebAssembly.instantiate(module)).exports as unknown as Exports);
  }

  /** Sets bytes aside; until {@link grow} they may be beyond the memory's end. */
  reserve(bytes: number): number {
    const address = Math.ceil(this.#end / ALIGNMENT) * ALIGNMENT;
    this.#end = address + bytes;
    return address;
  }

  /** Makes memory of all that was reserved. Views of it that were made before are void. */
  grow(): void {
    const { memory } = this.#exports;
    const pages = Math.ceil((this.#end - memory.buffer.byteLength) / PAGE);
    if (pages > 0) memory.grow(pages);
  }

  /** Reserves what {@link multiply} works in, for up to so many columns and tokens. */
  reserveScratch(columns: number, tokens: number): number {
    return this.reserve((2 * PANEL_ROWS + wholeFours(tokens)) * columns * 4);
  }

  bytes(address: number, length: number): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.#exports.memory.buffer, address, length);
  }

  floats(address: number, length: number): Float32Array<ArrayBuffer> {
    return new Float32Array(this.#exports.memory.buffer, address, length);
  }

  /** Puts one row of a matrix, in f32, to `target`. */
  dequantizeRow({ type, address, rowBytes, columns }: Matrix, row: number, target: number): void {
    this.#exports.dequantize(type, address + row * rowBytes, target, columns);
  }

  /**
   * `y[token][row]` is the product of `x[token]` and a row of the matrix.
   * @param x has room for {@link wholeFours} of the tokens
   * @param y the same
   */
  multiply(matrix: Matrix, x: number, tokens: number, y: number, scratch: number): void {
    const { type, address, rowBytes, rows, columns } = matrix;
    this.#exports.multiply(type, address, rowBytes, rows, columns, x, tokens, y, scratch);
  }
}

/** The next multiple of four. */
export function wholeFours(count: number): number {
  return Math.ceil(count / FOUR) * FOUR;
}
