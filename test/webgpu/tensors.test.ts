/** Tensors in buffers of a caller's device, and calls recorded into a caller's encoder. */
import { afterAll, describe, expect, it } from "vitest";
import { type GpuTensor, type Kvarn, type KvarnCache, openKvarn } from "../../src/index.js";
import { findAdapter, findGpu } from "../../src/webgpu/adapter.js";
import { expectError, expectRefused, expectSame, halves, makeQueries, makeTokens } from "../support/cache.js";
import { hasGpu } from "../support/engines.js";

const shape = { queryHeads: 4, kvHeads: 2, headDim: 32 };
const config = { ...shape, preset: "k4v2_g64", layers: 1, iterations: 2 };
const width = shape.kvHeads * shape.headDim;
const tokens = makeTokens(shape, 300);
const q = makeQueries(shape, 2);

describe.skipIf(!hasGpu)("tensors on a GPU", async () => {
  if (!hasGpu) return;
  const adapter = await findAdapter((await findGpu()).gpu);
  // With default limits and no features.
  const device = await adapter!.requestDevice();
  const kvarn = await openKvarn({ device });
  const buffers: GPUBuffer[] = [];
  afterAll(() => {
    kvarn.dispose();
    for (const buffer of buffers) buffer.destroy();
    device.destroy();
  });

  function makeBuffer(size: number, usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC): GPUBuffer {
    const buffer = device.createBuffer({ size, usage: usage | GPUBufferUsage.COPY_DST });
    buffers.push(buffer);
    return buffer;
  }

  /** Puts an array into a buffer, behind `offset` bytes of something else. */
  function upload(data: Float32Array | Uint16Array, perToken: number, offset = 0): GpuTensor {
    const buffer = makeBuffer(offset + data.byteLength + 12);
    device.queue.writeBuffer(buffer, 0, new Uint8Array(buffer.size).fill(0x55));
    device.queue.writeBuffer(buffer, offset, data as Float32Array<ArrayBuffer>);
    const type = data instanceof Float32Array ? "f32" : "f16";
    return { buffer, offset, type, tokens: data.length / perToken };
  }

  async function download({ buffer, offset = 0, tokens }: GpuTensor): Promise<Float32Array> {
    const size = tokens * shape.queryHeads * shape.headDim * 4;
    const target = device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    const encoder = device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, offset, target, 0, size);
    device.queue.submit([encoder.finish()]);
    await target.mapAsync(GPUMapMode.READ);
    const result = new Float32Array(target.getMappedRange().slice(0));
    target.destroy();
    return result;
  }

  const emptyOut = (tokens: number, offset = 0): GpuTensor => {
    const buffer = makeBuffer(offset + tokens * shape.queryHeads * shape.headDim * 4);
    return { buffer, offset, type: "f32", tokens };
  };

  async function arrayCache(engine: Kvarn, type: "f32" | "f16", count = 300): Promise<KvarnCache> {
    const cache = engine.createCache(config);
    const [k, v] = tokens.slice(0, count);
    await (type === "f32" ? cache.append(0, k, v) : cache.append(0, halves(k), halves(v)));
    return cache;
  }

  it("says that the device is the caller's", () => {
    expect(kvarn.backend).toMatchObject({ kind: "webgpu", variant: "f32", reason: "on the caller's device" });
    expect(kvarn.backend.adapter).toMatchObject({ software: expect.any(Boolean) as boolean });
  });

  it.each([
    ["f32", 0],
    ["f32", 4],
    ["f32", 1280],
    ["f16", 0],
    ["f16", 772],
  ] as const)("are appended as arrays are, %s from byte %i on", async (type, offset) => {
    const cache = kvarn.createCache(config);
    for (const [from, to] of [
      [0, 130],
      [130, 131],
      [131, 300],
    ]) {
      const sides = tokens.slice(from, to).map((x) => upload(type === "f32" ? x : halves(x), width, offset));
      await cache.append(0, sides[0], sides[1]);
    }
    const expected = await arrayCache(kvarn, type, 130);
    for (const [from, to] of [
      [130, 131],
      [131, 300],
    ]) {
      const [k, v] = tokens.slice(from, to).map((x) => (type === "f32" ? x : halves(x)));
      await expected.append(0, k, v);
    }
    expectSame(await cache.serialize(), await expected.serialize());
    cache.dispose();
    expected.dispose();
  });

  it("may be K on the GPU and V in an array", async () => {
    const cache = kvarn.createCache(config);
    await cache.append(0, upload(tokens.k, width), tokens.v);
    expectSame(await cache.serialize(), await (await arrayCache(kvarn, "f32")).serialize());
  });

  it.each([0, 256, 260])("are attended with, and take results, from byte %i on", async (offset) => {
    const cache = await arrayCache(kvarn, "f32");
    await cache.flush();
    const expected = await cache.attend(0, q);
    const onGpu = upload(q, shape.queryHeads * shape.headDim, offset);
    const out = emptyOut(2, offset);
    expectSame(await cache.attend(0, onGpu), expected);
    expect(await cache.attend(0, onGpu, { out })).toBe(out);
    expectSame(await download(out), expected);
    expect(await cache.attend(0, q, { out })).toBe(out);
    expectSame(await download(out), expected);
    const inHalf = upload(halves(q), shape.queryHeads * shape.headDim, offset);
    expectSame(await cache.attend(0, inHalf), await cache.attend(0, halves(q)));
  });

  it("go with a caller's encoder: nothing happens before it is submitted", async () => {
    const cache = kvarn.createCache(config);
    const expected = kvarn.createCache(config);
    for (let at = 0; at < 200;) {
      const count = at === 0 ? 127 : at < 140 ? 1 : 20;
      const [k, v] = tokens.slice(at, at + count);
      const tensors = [upload(k, width), upload(v, width)] as const;
      const commandEncoder = device.createCommandEncoder();
      await cache.append(0, ...tensors, { commandEncoder });
      expect(cache.length(0)).toBe(at + count);
      device.queue.submit([commandEncoder.finish()]);
      await expected.append(0, k, v);

      const out = emptyOut(1);
      const one = upload(q.slice(0, q.length / 2), shape.queryHeads * shape.headDim);
      const attending = device.createCommandEncoder();
      await cache.attend(0, one, { out, commandEncoder: attending });
      expect((await download(out)).every((x) => x === 0)).toBe(true);
      device.queue.submit([attending.finish()]);
      expectSame(await download(out), await expected.attend(0, q.slice(0, q.length / 2)));
      at += count;
    }
    expectSame(await cache.serialize(), await expected.serialize());
  });

  it("may lie in one buffer, queries and what comes of them", async () => {
    const cache = await arrayCache(kvarn, "f32", 64);
    const one = q.slice(0, q.length / 2);
    const expected = await cache.attend(0, one);
    const both = makeBuffer(2 * one.byteLength);
    device.queue.writeBuffer(both, 0, one);
    const queries: GpuTensor = { buffer: both, type: "f32", tokens: 1 };
    for (const offset of [one.byteLength, 0]) {
      const commandEncoder = device.createCommandEncoder();
      const out: GpuTensor = { ...queries, offset };
      await cache.attend(0, queries, { out, commandEncoder });
      device.queue.submit([commandEncoder.finish()]);
      expectSame(await download(out), expected);
    }
  });

  it.each(["f32", "f16"] as const)("are taken note of as queries, %s", async (type) => {
    const refined = { ...config, encoder: "refined" } as const;
    const [cache, expected] = [kvarn.createCache(refined), kvarn.createCache(refined)];
    for (const one of [cache, expected]) await one.append(0, ...tokens.slice(0, 200));
    const data = type === "f32" ? q : halves(q);
    const onGpu = upload(data, shape.queryHeads * shape.headDim, 12);
    await cache.attend(0, onGpu);
    await expected.attend(0, data);
    // What comes of them may take their place.
    const inPlace = type === "f32" ? onGpu : emptyOut(2);
    const commandEncoder = device.createCommandEncoder();
    await cache.attend(0, onGpu, { out: inPlace, commandEncoder });
    device.queue.submit([commandEncoder.finish()]);
    expectSame(await download(inPlace), await expected.attend(0, data));
    await Promise.all([cache.flush(), expected.flush()]);
    expect(cache.memory().queryBytes).toBe(2 * 32 * 32 * 4);
    expectSame(await cache.serialize(), await expected.serialize());
  });

  it("go with a caller's encoder over so many records that working buffers grow on the way", async () => {
    const cache = await arrayCache(kvarn, "f32", 64);
    // The table of their places just fills the least buffer, and more tables follow.
    const tiles = await kvarn.encode(...tokens.slice(64, 128), config);
    const records = new Uint8Array(510 * tiles.length);
    for (let at = 0; at < records.length; at += tiles.length) records.set(tiles, at);
    await cache.importRecords(0, records);
    const onGpu = upload(q, shape.queryHeads * shape.headDim);
    const out = emptyOut(2);
    const commandEncoder = device.createCommandEncoder();
    await cache.attend(0, onGpu, { out, commandEncoder });
    device.queue.submit([commandEncoder.finish()]);
    expectSame(await download(out), await cache.attend(0, q));
  });

  it("are refused where they cannot be what they should", async () => {
    const cache = await arrayCache(kvarn, "f32", 100);
    const good = upload(tokens.k.slice(0, 3 * width), width);
    const small = upload(q, shape.queryHeads * shape.headDim);
    const cases: [unknown, RegExp][] = [
      [{ ...good, buffer: {} }, /^k.buffer must be a GPUBuffer/],
      [
        { ...good, buffer: makeBuffer(4096, GPUBufferUsage.COPY_SRC) },
        /^k.buffer must have the usage STORAGE/,
      ],
      [{ ...good, type: "bf16" }, /^k.type must be "f32" or "f16", got "bf16"/],
      [{ ...good, offset: 2 }, /^k.offset must be a multiple of 4/],
      [{ ...good, offset: -4 }, /^k.offset must be a multiple of 4/],
      [{ ...good, tokens: 0 }, /^k.tokens must be an integer from 1/],
      [{ ...good, tokens: 1.5 }, /^k.tokens must be an integer from 1/],
    ];
    for (const [k, message] of cases) {
      await expectRefused(cache, () => cache.append(0, k as GpuTensor, good), "invalid-argument", message);
    }
    const long = { ...good, tokens: 4 };
    await expectRefused(cache, () => cache.append(0, long, good), "invalid-shape", /^k needs 1024 bytes/);
    const shorter = { ...good, tokens: 2 };
    await expectRefused(cache, () => cache.append(0, good, shorter), "invalid-shape", /^v must hold 192/);
    const half = { ...emptyOut(2), type: "f16" } as const;
    await expectRefused(cache, () => cache.attend(0, small, { out: half }), "invalid-argument", /^out.type/);
    const one = emptyOut(1);
    await expectRefused(cache, () => cache.attend(0, small, { out: one }), "invalid-shape", /^out.tokens/);
    const commandEncoder = device.createCommandEncoder();
    const mixed = () => cache.append(0, good, tokens.v.slice(0, 3 * width), { commandEncoder });
    await expectRefused(cache, mixed, "invalid-argument", /all tensors of the call/);
    const noOut = () => cache.attend(0, small, { commandEncoder });
    await expectRefused(cache, noOut, "invalid-argument", /all tensors of the call/);
  });

  it("leave all as it was when the device refuses their buffers", async () => {
    const cache = await arrayCache(kvarn, "f32", 200);
    const k = upload(tokens.k.slice(0, 70 * width), width);
    k.buffer.destroy();
    await expectRefused(cache, () => cache.append(0, k, k), "device-failed", /refuses/);
    await cache.append(0, ...tokens.slice(200, 300));
    const expected = await arrayCache(kvarn, "f32", 200);
    await expected.append(0, ...tokens.slice(200, 300));
    expectSame(await cache.serialize(), await expected.serialize());
    const out = emptyOut(2);
    out.buffer.destroy();
    await expectRefused(cache, () => cache.attend(0, q, { out }), "device-failed", /refuses/);
    expectSame(await cache.attend(0, q), await expected.attend(0, q));
  });

  it.each(["wasm", "reference"] as const)("are refused by %s", async (backend) => {
    const other = await openKvarn({ backend });
    const cache = other.createCache(config);
    const k = upload(tokens.k, width);
    await expectError(() => cache.append(0, k, k), "invalid-argument", /this engine's backend is/);
    const commandEncoder = device.createCommandEncoder();
    const [a, b] = tokens.slice(0, 5);
    const append = () => cache.append(0, a, b, { commandEncoder });
    await expectError(append, "invalid-argument", /this engine's backend is/);
    await cache.append(0, a, b);
    const out = emptyOut(1);
    const attend = () => cache.attend(0, q.slice(0, q.length / 2), { out });
    await expectError(attend, "invalid-argument", /this engine's backend is/);
    other.dispose();
  });
});
