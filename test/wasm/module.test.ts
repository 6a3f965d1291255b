/** What the compiled kernels are: without data, and with the imports and exports that TypeScript expects. */
import { describe, expect, it } from "vitest";
import { readBuild } from "../../src/wasm/builds.js";
import * as inlined from "../../src/wasm/inlined.js";
import type { Kernels } from "../../src/wasm/module.js";
import { canRunRelaxed } from "../../src/wasm/probe.js";
import * as threads from "../../src/wasm/threads-inlined.js";

const builds = [inlined, threads].flatMap((both) => [readBuild(both, "strict"), readBuild(both, "relaxed")]);
const [strict, relaxed, strictThreads, relaxedThreads] = builds;

/** All exports and what they are. The compiler holds this list against the interface. */
const EXPORTS = {
  memory: "memory",
  relaxed: "global",
  heapStart: "global",
  tile: "global",
  codes: "global",
  bytes: "global",
  rowScale: "global",
  columnScale: "global",
  codeScale: "global",
  codeZero: "global",
  rotateRows: "function",
  normalize: "function",
  pack: "function",
  unpackCodes: "function",
  unpack: "function",
  writeTokens: "function",
  encodeKeys: "function",
  encodeValues: "function",
  encodeNewKeys: "function",
  encodeNewValues: "function",
  refineKeys: "function",
  refineValues: "function",
  addQueries: "function",
  factorQueries: "function",
  keyNorms: "function",
  sumTokens: "function",
  decodeKeys: "function",
  decodeValues: "function",
  prepareQueries: "function",
  setMask: "function",
  hideTokens: "function",
  attendRecord: "function",
  attendRecordF32: "function",
  attendExact: "function",
  finishQueries: "function",
} as const satisfies Record<keyof Kernels, "memory" | "global" | "function">;

const IMPORT_SECTION = 2;
const START_SECTION = 8;
const EXPORT_SECTION = 7;
const CODE_SECTION = 10;
const DATA_SECTION = 11;
const DATA_COUNT_SECTION = 12;

/** A reader of bytes and of unsigned LEB128 numbers. */
class Reader {
  constructor(
    readonly bytes: Uint8Array,
    public at = 0,
  ) {}

  number(): number {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = this.bytes[this.at++];
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
  }

  take(length: number): Uint8Array {
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }
}

/** The contents of a module's sections, by their ids. */
function sections(module: Uint8Array): Map<number, Uint8Array> {
  const reader = new Reader(module, 8);
  const found = new Map<number, Uint8Array>();
  while (reader.at < module.length) {
    const id = reader.take(1)[0];
    found.set(id, reader.take(reader.number()));
  }
  expect(reader.at).toBe(module.length);
  return found;
}

/** Names and kinds of what a module exports. */
function exportsOf(module: Uint8Array): Record<string, string> {
  const reader = new Reader(sections(module).get(EXPORT_SECTION)!);
  const kinds = ["function", "table", "memory", "global"];
  return Object.fromEntries(
    Array.from({ length: reader.number() }, () => {
      const name = new TextDecoder().decode(reader.take(reader.number()));
      const kind = kinds[reader.take(1)[0]];
      reader.number();
      return [name, kind];
    }),
  );
}

/** How often `f32x4.relaxed_madd`, the bytes fd 85 02, seems to occur. */
function countRelaxed(module: Uint8Array): number {
  const code = sections(module).get(CODE_SECTION)!;
  return code.reduce(
    (count, byte, i) => count + Number(byte === 0xfd && code[i + 1] === 0x85 && code[i + 2] === 2),
    0,
  );
}

describe.each([
  ["strict", strict],
  ["relaxed", relaxed],
] as const)("the %s build", (_, module) => {
  it("has no data, which would lie where the kernels work, and nothing that runs by itself", () => {
    const ids = [...sections(module).keys()];
    expect(ids).toContain(CODE_SECTION);
    expect(ids).not.toContain(DATA_SECTION);
    expect(ids).not.toContain(DATA_COUNT_SECTION);
    expect(ids).not.toContain(START_SECTION);
    expect(ids).not.toContain(IMPORT_SECTION);
  });

  it("exports what TypeScript calls", () => {
    expect(exportsOf(module)).toEqual(EXPORTS);
  });
});

describe.each([
  ["strict", strictThreads, strict],
  ["relaxed", relaxedThreads, relaxed],
] as const)("the %s build with threads", (_, module, single) => {
  it("has no data, and gets its memory and its place in it", () => {
    const found = sections(module);
    expect([...found.keys()]).not.toContain(DATA_SECTION);
    const reader = new Reader(found.get(IMPORT_SECTION)!);
    expect(reader.number()).toBe(2);
    const text = new TextDecoder().decode(reader.bytes);
    expect(text).toContain("memory");
    expect(text).toContain("base");
  });

  it("exports what the other has, and what runs tasks", () => {
    const more = { work: "function", serve: "function", combineParts: "function" };
    expect(exportsOf(module)).toEqual({ ...EXPORTS, ...more });
    expect(countRelaxed(module) > 10).toBe(countRelaxed(single) > 10);
  });
});

it("instances with threads work in places that are as far apart as their bases", async () => {
  const memory = new WebAssembly.Memory({ initial: 0, maximum: 65536, shared: true });
  const open = async (base: number) =>
    (await WebAssembly.instantiate(strictThreads, { env: { memory, base } })).instance
      .exports as unknown as Kernels;
  const [one, other] = [await open(1024), await open(4_000_000)];
  const single = (await WebAssembly.instantiate(strict)).instance.exports as unknown as Kernels;
  for (const name of [
    "tile",
    "codes",
    "bytes",
    "rowScale",
    "columnScale",
    "codeZero",
    "heapStart",
  ] as const) {
    expect(one[name].value).toBe(single[name].value);
    expect(other[name].value).toBe((one[name].value as number) + 4_000_000 - 1024);
  }
});

describe("the strict build", () => {
  it("runs here, on any engine with SIMD", async () => {
    expect(WebAssembly.validate(strict)).toBe(true);
    expect(countRelaxed(strict)).toBeLessThan(2);
    const { instance } = await WebAssembly.instantiate(strict);
    expect(Object.keys(instance.exports).sort()).toEqual(Object.keys(EXPORTS).sort());
    expect((instance.exports as unknown as Kernels).relaxed.value).toBe(0);
  });

  it("works in places that do not overlap, below those of the heap", async () => {
    const kernels = (await WebAssembly.instantiate(strict)).instance.exports as unknown as Kernels;
    const tile = 512 * 128;
    const places = {
      tile: tile * 4,
      codes: tile + 8,
      bytes: tile + 8,
      rowScale: 512 * 4,
      columnScale: 512 * 4,
      codeScale: 512 * 4,
      codeZero: 512 * 4,
    };
    const ranges = Object.entries(places)
      .map(([name, bytes]) => [kernels[name as keyof typeof places].value as number, bytes] as const)
      .sort(([a], [b]) => a - b);
    ranges.forEach(([address, bytes], i) => {
      expect(address).toBeGreaterThan(0);
      expect(address % 16).toBe(0);
      const next = i + 1 < ranges.length ? ranges[i + 1][0] : (kernels.heapStart.value as number);
      expect(address + bytes).toBeLessThanOrEqual(next);
    });
  });
});

describe("the relaxed build", () => {
  it("is the one with relaxed instructions", () => {
    expect(countRelaxed(relaxed)).toBeGreaterThan(10);
    expect(WebAssembly.validate(relaxed)).toBe(canRunRelaxed());
  });
});
