/** Seeded K, V and q with what makes a real model's hard to quantize: channels and tokens far larger than the rest. */

/** Values to draw from. Rows start anywhere in it, which is far quicker than drawing each value. */
const POOL = 65_536;
const MAX_HEAD_DIM = 512;

export class Source {
  readonly #next: () => number;
  readonly #pool: Float32Array;
  #token = 0;

  constructor(seed: number) {
    const next = xorshift32(seed);
    this.#next = next;
    // Four uniform draws make about a normal number, of standard deviation 1.
    const draw = () => (next() + next() + next() + next()) / 2 ** 32 - 2;
    this.#pool = Float32Array.from({ length: POOL + MAX_HEAD_DIM }, () => Math.sqrt(3) * draw());
  }

  /** The next tokens' K and V, `[tokens, kvHeads, headDim]` each. */
  tokens(tokens: number, kvHeads: number, headDim: number): { k: Float32Array; v: Float32Array } {
    const k = new Float32Array(tokens * kvHeads * headDim);
    const v = new Float32Array(k.length);
    for (let at = 0; at < k.length; this.#token++) {
      const keyScale = this.#token % 29 === 5 ? 3 : 1;
      const valueScale = this.#token % 17 === 3 ? 6 : this.#token % 5 === 1 ? 0.5 : 1;
      for (let head = 0; head < kvHeads; head++) {
        const keyFrom = this.#start();
        const valueFrom = this.#start();
        for (let channel = 0; channel < headDim; channel++, at++) {
          // A few channels of K are large, and others have a mean far from zero.
          const large = (7 * channel + 3 * head) % 25 === 0 ? 8 : 1;
          const mean = (5 * channel + head) % 31 === 0 ? 4 : 0;
          k[at] = keyScale * large * this.#pool[keyFrom + channel] + mean;
          v[at] = valueScale * this.#pool[valueFrom + channel];
        }
      }
    }
    return { k, v };
  }

  /** Rows of about normal numbers. */
  rows(rows: number, columns: number): Float32Array {
    const x = new Float32Array(rows * columns);
    for (let row = 0; row < rows; row++) {
      const from = this.#start();
      x.set(this.#pool.subarray(from, from + columns), row * columns);
    }
    return x;
  }

  #start(): number {
    return this.#next() % POOL;
  }
}

/** Unsigned 32-bit integers. */
export function xorshift32(seed: number): () => number {
  let x = seed;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  };
}
