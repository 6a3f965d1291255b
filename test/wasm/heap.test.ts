import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Heap, type Range } from "../../src/wasm/heap.js";
import { Workspace } from "../../src/wasm/workspace.js";
import { expectError } from "../support/cache.js";
import { runs } from "../support/tiles.js";

const PAGE = 65536;
const GIB = 2 ** 30;

/** Grows as a WASM memory does, without the bytes. */
class FakeMemory {
  buffer = { byteLength: 0 };
  /** Pages by which it was asked to grow. */
  readonly grown: number[] = [];

  constructor(
    pages = 0,
    readonly most = Infinity,
  ) {
    this.buffer.byteLength = pages * PAGE;
  }

  grow(pages: number): number {
    const before = this.buffer.byteLength / PAGE;
    if (before + pages > this.most)
      throw new RangeError("WebAssembly.Memory.grow(): Maximum memory size exceeded");
    this.grown.push(pages);
    this.buffer = { byteLength: (before + pages) * PAGE };
    return before;
  }
}

function makeHeap(start: number, memory = new FakeMemory()): { heap: Heap; memory: FakeMemory } {
  return { heap: new Heap(memory as unknown as WebAssembly.Memory, start), memory };
}

const align = (bytes: number) => Math.ceil(bytes / 16) * 16;

describe("the heap of the WASM engine", () => {
  it("gives ranges that do not overlap, lie in memory, and come back as one", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 5000 }),
        fc.array(
          fc.oneof(
            { weight: 3, arbitrary: fc.record({ bytes: fc.integer({ min: 1, max: 300_000 }) }) },
            { weight: 2, arbitrary: fc.record({ free: fc.nat() }) },
          ),
          { maxLength: 80 },
        ),
        (start, steps) => {
          const { heap, memory } = makeHeap(start);
          const live: Range[] = [];
          let highest = align(start);
          for (const step of steps) {
            if ("bytes" in step) {
              const before = memory.buffer.byteLength;
              const range = heap.allocate(step.bytes);
              expect(range.bytes).toBe(align(step.bytes));
              expect(range.address % 16).toBe(0);
              expect(range.address).toBeGreaterThanOrEqual(start);
              const end = range.address + range.bytes;
              expect(end).toBeLessThanOrEqual(memory.buffer.byteLength);
              for (const other of live) {
                const apart = other.address + other.bytes <= range.address || end <= other.address;
                expect(apart).toBe(true);
              }
              highest = Math.max(highest, end);
              // No more pages than what was in use needed.
              if (memory.buffer.byteLength > before) {
                expect(memory.buffer.byteLength).toBe(Math.ceil(highest / PAGE) * PAGE);
              }
              live.push(range);
            } else if (live.length > 0) {
              heap.free(live.splice(step.free % live.length, 1)[0]);
            }
            expect(heap.usedBytes).toBe(live.reduce((sum, { bytes }) => sum + bytes, 0));
          }

          for (const range of live) heap.free(range);
          expect(heap.usedBytes).toBe(0);
          // All that was ever in use is one free range again.
          const held = memory.buffer.byteLength;
          if (highest > align(start)) {
            expect(heap.allocate(highest - align(start)).address).toBe(align(start));
            expect(memory.buffer.byteLength).toBe(held);
          }
        },
      ),
      runs(200),
    );
  });

  it("uses what was freed, the first that fits", () => {
    const { heap, memory } = makeHeap(0);
    const [a, b, c, d] = [100, 50, 200, 10].map((pages) => heap.allocate(pages * PAGE));
    heap.free(a);
    heap.free(c);
    const held = memory.buffer.byteLength;
    expect(heap.allocate(150 * PAGE).address).toBe(c.address);
    expect(heap.allocate(100 * PAGE).address).toBe(a.address);
    expect(heap.allocate(50 * PAGE).address).toBe(c.address + 150 * PAGE);
    expect(memory.buffer.byteLength).toBe(held);
    expect([b.address, d.address]).toEqual([100 * PAGE, 350 * PAGE]);
  });

  it("grows by what is missing behind a free end", () => {
    const { heap, memory } = makeHeap(0);
    heap.allocate(PAGE);
    heap.free(heap.allocate(2 * PAGE));
    expect(heap.allocate(5 * PAGE).address).toBe(PAGE);
    expect(memory.grown).toEqual([1, 2, 3]);
  });

  it("leaves memory alone that it starts with", () => {
    const { heap, memory } = makeHeap(100_000, new FakeMemory(4));
    expect(memory.grown).toEqual([]);
    expect(heap.allocate(1).address).toBe(100_000);
    expect(heap.allocate(4 * PAGE).address).toBe(100_016);
    expect(memory.grown).toEqual([2]);
  });

  it("fails before 4 GiB, and goes on with what it has", async () => {
    const { heap, memory } = makeHeap(0);
    const large = heap.allocate(3 * GIB);
    const message = /^the WASM engine would need \d+ bytes; wasm32 addresses 4294901760$/;
    for (const bytes of [GIB, 2 ** 32, 2 ** 40]) {
      await expectError(() => heap.allocate(bytes), "out-of-memory", message);
      await expectError(() => heap.checkRoom(bytes), "out-of-memory", message);
    }
    expect([heap.usedBytes, memory.buffer.byteLength]).toEqual([3 * GIB, 3 * GIB]);

    // All but the last page.
    heap.checkRoom(GIB - PAGE);
    const rest = heap.allocate(GIB - PAGE);
    expect(rest.address + rest.bytes).toBe(2 ** 32 - PAGE);
    await expectError(() => heap.allocate(1), "out-of-memory", message);
    heap.free(large);
    heap.checkRoom(3 * GIB);
    expect(heap.allocate(16).address).toBe(0);
    expect(memory.buffer.byteLength).toBe(2 ** 32 - PAGE);
  });

  it("says so when the machine has no more, and goes on", async () => {
    const { heap } = makeHeap(0, new FakeMemory(0, 10));
    heap.allocate(8 * PAGE);
    const error = await expectError(
      () => heap.allocate(3 * PAGE),
      "out-of-memory",
      /^the WASM engine's memory could not grow to 720896 bytes$/,
    );
    expect(error.cause).toBeInstanceOf(RangeError);
    expect(heap.usedBytes).toBe(8 * PAGE);
    expect(heap.allocate(2 * PAGE).address).toBe(8 * PAGE);
    await expectError(() => makeHeap(PAGE, new FakeMemory(0, 0)), "out-of-memory");
  });
});

describe("the workspace of the WASM engine", () => {
  it("is as large as the largest call needed, and one range", () => {
    const { heap, memory } = makeHeap(0);
    const workspace = new Workspace(heap);
    expect(heap.usedBytes).toBe(0);
    const first = workspace.take(1000);
    expect(workspace.take(1000)).toBe(first);
    expect(workspace.take(10)).toBe(first);
    expect(heap.usedBytes).toBe(1008);

    const behind = heap.allocate(16);
    const second = workspace.take(3 * PAGE);
    expect(second).toBeGreaterThan(behind.address);
    expect(heap.usedBytes).toBe(3 * PAGE + 16);
    // What it had before serves others.
    expect(heap.allocate(1008).address).toBe(first);
    expect(memory.buffer.byteLength).toBe(4 * PAGE);
  });

  it("keeps what it has when there is no more", async () => {
    const { heap } = makeHeap(0, new FakeMemory(0, 4));
    const workspace = new Workspace(heap);
    const address = workspace.take(3 * PAGE);
    await expectError(() => workspace.take(4 * PAGE), "out-of-memory");
    expect(workspace.take(3 * PAGE)).toBe(address);
    expect(heap.usedBytes).toBe(3 * PAGE);
  });
});
