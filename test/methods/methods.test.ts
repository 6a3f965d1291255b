/** Each method against the figures of its source, or what it must be by its description. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { relativeError } from "../../src/conformance/compare.js";
import { decode, encode } from "../../src/codec.js";
import { fromHalf, toHalf } from "../../src/half.js";
import { parsePreset, recordLayout } from "../../src/format.js";
import {
  affine,
  type CompressedTokens,
  createMethod,
  f16,
  hadamardKivi,
  kivi,
  kvarn,
  kvarnOtt,
  type Method,
  METHOD_NAMES,
  type MethodBits,
  nqkv,
  ott,
  quarot,
  squat,
  turboquant,
} from "../../src/methods/index.js";
import { referenceBackend, rotate } from "../../src/reference/index.js";
import { randomArray } from "../support/random.js";
import { makeTile, regularTiles, runs, transpose } from "../support/tiles.js";

/** A head of 64 elements with what keys have: channels far from zero, tokens of uneven length. */
const D = 64;
const keysOf = (tokens: number, seed: number, headDim = D): Float32Array =>
  transpose(
    makeTile(regularTiles["rows off by up to 30 deviations"], headDim, tokens, seed),
    headDim,
    tokens,
  );
const valuesOf = (tokens: number, seed: number, headDim = D): Float32Array =>
  makeTile(regularTiles["uneven rows and columns"], tokens, headDim, seed);
const queries = randomArray(48 * D, 11);

const compress = (method: Method, k: Float32Array, v: Float32Array, headDim = D): CompressedTokens =>
  method.open({ headDim, queries: headDim === D ? queries : randomArray(48 * headDim, 11) }).compress(k, v);
/** Bits for a value of K, and of V. */
const bitsOf = (method: Method, headDim = 128): [number, number] => {
  const tokens = method.window.block;
  const k = keysOf(tokens, 1, headDim);
  const { keyBits, valueBits } = compress(method, k, k, headDim);
  return [keyBits / k.length, valueBits / k.length];
};
/** As toEqual, which takes long over as many elements. */
const expectSame = (actual: Float32Array, expected: Float32Array): void => {
  const bytes = (rows: Float32Array) => new Uint8Array(rows.buffer, rows.byteOffset, rows.byteLength);
  expect(Buffer.compare(bytes(actual), bytes(expected))).toBe(0);
};
const each = METHOD_NAMES.map((name) => [name] as const);

describe.each(each)("%s", (name) => {
  const finest: Record<string, MethodBits> = { f16: {}, turboquant: { keyBits: 4, valueBits: 4 }, nqkv: {} };
  const fine = createMethod(name, finest[name] ?? { keyBits: 8, valueBits: 8 });

  it("names itself and its source", () => {
    expect(fine.name).toBe(name);
    expect(fine.source).toMatch(name === "f16" ? /binary16/ : /arXiv \d{4}\.\d{5}/);
  });

  it("gives tokens back, about as they were", () => {
    const k = randomArray(256 * D, 2);
    const v = randomArray(256 * D, 3);
    const stored = compress(fine, k, v);
    const error = { f16: 3e-4, turboquant: 0.11, nqkv: 0.11 }[name as string] ?? 0.012;
    expect(relativeError(stored.k, k)).toBeLessThan(error);
    expect(relativeError(stored.v, v)).toBeLessThan(error);
    expect(stored.k).not.toBe(k);
  });

  it("leaves its input alone", () => {
    const [k, v] = [keysOf(128, 2), valuesOf(128, 3)];
    const before = [k.slice(), v.slice()];
    compress(fine, k, v);
    expectSame(k, before[0]);
    expectSame(v, before[1]);
  });

  it("compresses tokens by parts as at once", () => {
    const [k, v] = [keysOf(256, 4), valuesOf(256, 5)];
    const whole = compress(fine, k, v);
    const head = fine.open({ headDim: D, queries });
    const step = fine.needs.tokens * D;
    const parts: CompressedTokens[] = [];
    for (let at = 0; at < k.length; at += step) {
      parts.push(head.compress(k.slice(at, at + step), v.slice(at, at + step)));
    }
    const join = (side: "k" | "v") => Float32Array.from(parts.flatMap((part) => [...part[side]]));
    const sum = (side: "keyBits" | "valueBits" | "poolBits") =>
      parts.reduce((all, part) => all + part[side], 0);
    expectSame(join("k"), whole.k);
    expectSame(join("v"), whole.v);
    expect([sum("keyBits"), sum("valueBits"), sum("poolBits")]).toEqual([
      whole.keyBits,
      whole.valueBits,
      whole.poolBits,
    ]);
  });

  it("errs less with more bits", () => {
    const widths = { f16: [16], turboquant: [1, 2, 3, 4], nqkv: [3, 4] }[name as string] ?? [
      2, 3, 4, 5, 6, 8,
    ];
    fc.assert(
      fc.property(fc.nat(10_000), (seed) => {
        const [k, v] = [keysOf(128, seed), valuesOf(128, seed + 1)];
        let last = { k: Infinity, v: Infinity, bits: 0 };
        for (const bits of widths) {
          const stored = compress(createMethod(name, { keyBits: bits, valueBits: bits }), k, v);
          const now = {
            k: relativeError(stored.k, k),
            v: relativeError(stored.v, v),
            bits: stored.keyBits + stored.valueBits,
          };
          expect(now.k).toBeLessThan(last.k);
          expect(now.v).toBeLessThan(last.v);
          expect(now.bits).toBeGreaterThan(last.bits);
          last = now;
        }
      }),
      runs(1),
    );
  });

  it("refuses what it cannot take, by its name", () => {
    const open = (headDim: number) => fine.open({ headDim, queries: randomArray(4 * headDim, 1) });
    const expectError = (work: () => unknown, code: string, message: string): void => {
      expect(work).toThrow(
        expect.objectContaining({ code, message: expect.stringContaining(message) as string }),
      );
    };
    for (const headDim of [0, -64, 1.5, NaN]) {
      expectError(
        () => fine.open({ headDim, queries }),
        "unsupported-head-dim",
        `${name}: headDim must be a`,
      );
    }
    if (fine.needs.headDim > 1) {
      const message = `${name}: headDim must be a multiple of ${fine.needs.headDim}, got 24`;
      expectError(() => open(24), "unsupported-head-dim", message);
    }
    const head = open(D);
    const rows = new Float32Array(256 * D);
    expectError(() => head.compress(new Float32Array(0), rows), "invalid-shape", `${name}: k must hold`);
    expectError(() => head.compress(rows, rows.subarray(1)), "invalid-shape", `${name}: v must hold`);
    expectError(
      () => head.compress(rows, rows.subarray(rows.length / 2)),
      "invalid-shape",
      "as many elements as k",
    );
    expectError(
      () => head.compress([] as never, rows),
      "invalid-argument",
      `${name}: k must be a Float32Array`,
    );
    const bad = rows.slice();
    bad[3 * D + 5] = NaN;
    expectError(() => head.compress(rows, bad), "non-finite", `${name}: v is NaN at token 3, channel 5`);
    bad[3 * D + 5] = 1e38;
    expectError(() => head.compress(bad, rows), "non-finite", `${name}: k is beyond 65504`);
    if (fine.needs.tokens > 1) {
      const message = `${name}: k must hold a multiple of ${fine.needs.tokens} tokens of 64 elements, got 31`;
      expectError(() => head.compress(rows.subarray(0, 31 * D), rows), "invalid-shape", message);
    }
    const message = `${name}: keyBits must be an integer`;
    expectError(() => createMethod(name, { keyBits: 17 }), "invalid-argument", message);
  });
});

it("createMethod knows no other names", () => {
  expect(() => createMethod("kv" as never)).toThrow(/^method must be one of f16, kivi, .*, got "kv"$/);
  expect(() => createMethod("toString" as never)).toThrow(/got "toString"$/);
});

describe("f16", () => {
  it("is binary16", () => {
    const k = keysOf(7, 1);
    const stored = compress(f16(), k, k);
    expect(stored.k).toEqual(k.map((x) => fromHalf(toHalf(x))));
    expect(bitsOf(f16())).toEqual([16, 16]);
  });
});

describe("KIVI", () => {
  it("has a scale and a zero point for 32 elements: one bit more per value", () => {
    for (const bits of [2, 4]) expect(bitsOf(kivi({ keyBits: bits, valueBits: 4 }))).toEqual([bits + 1, 5]);
    expect(bitsOf(kivi({ group: 64 }))).toEqual([2.5, 2.5]);
  });

  it("rounds keys per channel and values per token", () => {
    // What differs from channel to channel alone is kept in keys, from token to token alone in values.
    const byChannel = Float32Array.from({ length: 32 * D }, (_, i) => ((i % D) * 5) % 97);
    const byToken = Float32Array.from({ length: 32 * D }, (_, i) => (Math.floor(i / D) * 5) % 97);
    const kept = compress(kivi(), byChannel, byToken);
    expect([kept.k, kept.v]).toEqual([byChannel, byToken]);
    const lost = compress(kivi(), byToken, byChannel);
    expect(relativeError(lost.k, byToken)).toBeGreaterThan(0.1);
    expect(relativeError(lost.v, byChannel)).toBeGreaterThan(0.1);
  });

  it("holds the newest exactly", () => {
    expect(kivi().window).toEqual({ sink: 0, recent: 0, block: 128, recentValues: 128 });
    expect(kivi({ residual: 32 }).window).toEqual({ sink: 0, recent: 0, block: 32, recentValues: 32 });
    expect(() => kivi({ residual: 48 })).toThrow("kivi: residual must be a multiple of group (32), got 48");
    expect(() => kivi({ group: 0 })).toThrow("kivi: group must be");
  });
});

describe("QuaRot", () => {
  it("has a scale and a zero point per token of a head: a quarter of a bit at 128", () => {
    expect(bitsOf(quarot())).toEqual([4.25, 4.25]);
    expect(bitsOf(quarot({ keyBits: 3, valueBits: 2 }))).toEqual([3.25, 2.25]);
  });

  it("rounds in the rotated frame, each token for itself", () => {
    // Rotated, a single element has two values, which one bit keeps; so has their sum with another.
    const k = new Float32Array(2 * D);
    k[3] = 8;
    k[D + 60] = -24;
    expect(compress(quarot({ keyBits: 1 }), k, k).k).toEqual(k);
  });

  it("clips by its factor", () => {
    const [k, v] = [keysOf(64, 1), valuesOf(64, 2)];
    const clipped = compress(quarot({ clip: 0.95, keyBits: 8 }), k, v);
    expect(relativeError(clipped.k, k)).toBeGreaterThan(
      3 * relativeError(compress(quarot({ keyBits: 8 }), k, v).k, k),
    );
    for (const clip of [0, 1.1, NaN, "1" as never]) {
      expect(() => quarot({ clip })).toThrow("quarot: clip must be above 0 and at most 1");
    }
  });
});

describe("hadamard+kivi", () => {
  it("is KIVI in the rotated frame", () => {
    const [k, v] = [keysOf(64, 1), valuesOf(64, 2)];
    const stored = compress(hadamardKivi(), k, v);
    const inside = compress(kivi(), rotate(k, D), rotate(v, D));
    expectSame(stored.k, rotate(inside.k, D));
    expectSame(stored.v, rotate(inside.v, D));
    expect([stored.keyBits, stored.valueBits]).toEqual([inside.keyBits, inside.valueBits]);
    expect(hadamardKivi().window).toEqual(kivi().window);
  });
});

describe("KVarN", () => {
  const presets = ["k4v2_g128", "k2v2_g128", "k4v4_g64", "k3v5_g64", "k8v6_g128"];
  it.each(presets.flatMap((preset) => [64, 80].map((headDim) => [preset, headDim] as const)))(
    "gives what the reference backend's records of %s give, D=%i",
    async (preset, headDim) => {
      const { keyBits, valueBits, group } = parsePreset(preset);
      const [k, v] = [keysOf(128, 7, headDim), valuesOf(128, 8, headDim)];
      const options = { preset, kvHeads: 1, headDim };
      const records = await encode(referenceBackend(), k, v, options);
      const decoded = await decode(referenceBackend(), records, options);
      const stored = compress(kvarn({ keyBits, valueBits, group }), k, v, headDim);
      expectSame(stored.k, decoded.k);
      expectSame(stored.v, decoded.v);
      expect(stored.keyBits + stored.valueBits).toBe(8 * records.length);
      const layout = recordLayout(parsePreset(preset), headDim);
      expect(stored.keyBits).toBe((128 / group) * 8 * layout.vCodes);
    },
  );

  it("takes the iterations that it is told", async () => {
    const [k, v] = [keysOf(128, 7), valuesOf(128, 8)];
    const options = { kvHeads: 1, headDim: D };
    const records = await encode(referenceBackend(), k, v, { ...options, iterations: 1 });
    const decoded = await decode(referenceBackend(), records, options);
    expectSame(compress(kvarn({ iterations: 1 }), k, v).v, decoded.v);
    expect(relativeError(compress(kvarn(), k, v).v, decoded.v)).toBeGreaterThan(0);
    expect(() => kvarn({ iterations: 65 })).toThrow("iterations must be an integer from 0 to 64");
  });

  it("has sink and tiles of its group", () => {
    expect(kvarn({ group: 64 }).window).toEqual({ sink: 64, recent: 0, block: 64, recentValues: 0 });
    expect(() => kvarn({ keyBits: 7 })).toThrow(expect.objectContaining({ code: "unsupported-preset" }));
    expect(() => kvarn({ group: 32 })).toThrow(expect.objectContaining({ code: "unsupported-preset" }));
  });
});

describe("OTT", () => {
  /** 256 tokens, of which some are small. */
  const small = [5, 77, 200];
  const withSmall = (seed: number): Float32Array => {
    const k = keysOf(256, seed);
    for (const token of small)
      k.subarray(token * D, (token + 1) * D).forEach((x, i, row) => (row[i] = x / 64));
    return k;
  };
  const exactTokens = (stored: Float32Array, rows: Float32Array): number[] =>
    Array.from({ length: rows.length / D }, (_, token) => token).filter((token) =>
      rows
        .subarray(token * D, (token + 1) * D)
        .every((x, channel) => stored[token * D + channel] === fromHalf(toHalf(x))),
    );

  it.each([ott(), kvarnOtt({ keyBits: 2 })])("$name holds the tokens of small keys exactly", (method) => {
    const [k, v] = [withSmall(1), valuesOf(256, 2)];
    const stored = method.open({ headDim: D, layer: 2 }).compress(k, v);
    // Two more of the first group, displaced by the one of the second.
    const exact = exactTokens(stored.v, v);
    expect(exact).toHaveLength(4);
    expect(exact).toEqual(expect.arrayContaining(small));
    expect(exactTokens(stored.k, k)).toEqual(exact);
    expect(stored.poolBits).toBe(4 * (2 * 16 * D + 32));
  });

  it.each([0, 1])("goes without in layer %i", (layer) => {
    const k = withSmall(1);
    const without = ott().open({ headDim: D, layer }).compress(k, k);
    expect(without.poolBits).toBe(0);
    expectSame(without.k, affine({ bits: 2, axis: "channel", group: 128 })(k, D).rows);
    expectSame(without.v, affine({ bits: 2, axis: "token", group: D })(k, D).rows);
    expectSame(kvarnOtt().open({ headDim: D, layer }).compress(k, k).k, compress(kvarn(), k, k).k);
  });

  it("lessens the error of the others at 2 bits", () => {
    const k = withSmall(3);
    const others = (stored: Float32Array): number => {
      const keep = (_: number, i: number): boolean => !small.includes(Math.floor(i / D));
      return relativeError(stored.filter(keep), k.filter(keep));
    };
    const pooled = ott().open({ headDim: D, layer: 2 }).compress(k, k);
    const plain = ott().open({ headDim: D, layer: 0 }).compress(k, k);
    expect(others(pooled.k)).toBeLessThan(0.9 * others(plain.k));
  });

  it("is of 2.25 bits and the pool", () => {
    expect(bitsOf(ott())).toEqual([2.25, 2.25]);
    expect(ott().window).toEqual({ sink: 0, recent: 32, block: 128, recentValues: 0 });
    expect(kvarnOtt().window).toEqual(kvarn().window);
  });
});

describe("TurboQuant", () => {
  // Table of the paper: distortion 0.36, 0.117, 0.03, 0.009; here with three digits, for long vectors.
  it.each([
    [1, 0.363381],
    [2, 0.117482],
    [3, 0.034548],
    [4, 0.009501],
  ])("of %i bits loses %f of the energy", (bits, distortion) => {
    const k = randomArray(512 * 128, bits);
    const stored = compress(turboquant({ keyBits: bits, valueBits: bits }), k, k, 128);
    for (const rows of [stored.k, stored.v]) {
      expect(relativeError(rows, k) ** 2 / distortion).toBeGreaterThan(0.96);
      expect(relativeError(rows, k) ** 2 / distortion).toBeLessThan(1.02);
    }
  });

  it("adds a norm per token: an eighth of a bit at 128", () => {
    expect(bitsOf(turboquant({ keyBits: 3 }))).toEqual([3.125, 4.125]);
    expect(() => turboquant({ keyBits: 5 })).toThrow(
      "turboquant: keyBits must be an integer from 1 to 4, got 5",
    );
  });

  it("scales with each token", () => {
    const k = randomArray(8 * D, 1);
    const scaled = k.map((x, i) => x * 4 ** Math.floor(i / D));
    const [stored, storedScaled] = [compress(turboquant(), k, k), compress(turboquant(), scaled, scaled)];
    expect(storedScaled.k).toEqual(stored.k.map((x, i) => x * 4 ** Math.floor(i / D)));
  });
});

describe("NQKV", () => {
  it("adds a scale per token: an eighth of a bit at 128", () => {
    expect(bitsOf(nqkv())).toEqual([4.125, 4.125]);
    expect(() => nqkv({ valueBits: 2 })).toThrow("nqkv: valueBits must be an integer from 3 to 4, got 2");
  });

  it("rounds to NF4 by the largest magnitude of a token", () => {
    const k = new Float32Array(D);
    k.set([-16, 8, 1.2, 0.6, -2.3, 11.4]);
    const nf4 = [-1, 0.44071, 0.07958, 0, -0.184773, 0.722957].map((x) => Math.fround(16 * x));
    expect([...compress(nqkv(), k, k).k.subarray(0, 6)]).toEqual(nf4);
  });
});

describe("SQuat", () => {
  it("is KIVI where no query counts, and for values", () => {
    const [k, v] = [keysOf(64, 1), valuesOf(64, 2)];
    const plain = compress(kivi({ residual: 32 }), k, v);
    const stored = compress(squat({ lambda: 0 }), k, v);
    expect(stored).toEqual(plain);
    const aware = compress(squat({ lambda: 1 }), k, v);
    expect(aware.v).toEqual(plain.v);
    expect([aware.keyBits, aware.valueBits]).toEqual([plain.keyBits, plain.valueBits]);
    expect(bitsOf(squat())).toEqual([3, 3]);
    expect(squat().window).toEqual(kivi({ residual: 32 }).window);
  });

  it("lessens the error that its queries see", () => {
    const [k, v] = [randomArray(64 * D, 1), valuesOf(64, 2)];
    const few = randomArray(8 * D, 4, 4);
    const scoreError = (stored: Float32Array): number => {
      let sum = 0;
      for (let q = 0; q < few.length; q += D) {
        for (let token = 0; token < k.length; token += D) {
          let score = 0;
          for (let i = 0; i < D; i++) score += few[q + i] * (stored[token + i] - k[token + i]);
          sum += score ** 2;
        }
      }
      return sum;
    };
    const stored = (options: object) => squat(options).open({ headDim: D, queries: few }).compress(k, v).k;
    const plain = scoreError(stored({ lambda: 0 }));
    expect(scoreError(stored({ lambda: 0.1 }))).toBeLessThan(0.7 * plain);
    expect(scoreError(stored({ lambda: 0.1, channels: 2 }))).toBeLessThan(0.2 * plain);
  });

  it("needs queries, and blocks that divide a head", () => {
    const method = squat();
    for (const missing of [undefined, new Float32Array(0), new Float32Array(D + 1), [1] as never]) {
      expect(() => method.open({ headDim: D, queries: missing })).toThrow(
        expect.objectContaining({
          code: "invalid-argument",
          message: expect.stringContaining("squat: queries must be given") as string,
        }),
      );
    }
    const infinite = new Float32Array(D).fill(Infinity);
    expect(() => method.open({ headDim: D, queries: infinite })).toThrow(
      "squat: queries are Infinity at element 0",
    );
    expect(() => squat({ channels: 48 }).open({ headDim: D, queries })).toThrow(
      "squat: headDim must be a multiple of channels (48), got 64",
    );
    for (const options of [{ lambda: -1 }, { lambda: NaN }, { rank: 0 }, { channels: 0 }]) {
      expect(() => squat(options)).toThrow(expect.objectContaining({ code: "invalid-argument" }));
    }
  });
});
