/** Attention on matrix units, which no GPU of software has: with plain WGSL in place of what uses them. */
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { openKvarn } from "../../src/index.js";
import { parsePreset, recordLayout } from "../../src/format.js";
import { findAdapter, findGpu, openDevice } from "../../src/webgpu/adapter.js";
import { Gpu } from "../../src/webgpu/gpu.js";
import { tryMatrixUnits } from "../../src/webgpu/matrix.js";
import { type AttentionCase, checkAttention, prepareAttention } from "../support/attention.js";
import { hasGpu } from "../support/engines.js";
import { randomArray } from "../support/random.js";

const real = await vi.importActual<{ shaders: Record<string, string> }>("../../src/webgpu/matrix-inlined.js");
const emulated = readFileSync("test/support/matrix.wgsl", "utf8");
/** Shaders as they are loaded. */
const shaders = vi.hoisted((): Record<string, string> => ({}));
vi.mock("../../src/webgpu/matrix-inlined.js", () => ({ shaders }));

/** Has shaders loaded that begin with telling the emulation which invocation it is. */
function emulate(matrix: string): void {
  const begin = (code: string) =>
    code.replace(/local_invocation_index\) (\w+): u32\) \{/, "$& invocation = $1;");
  Object.assign(shaders, { ...real.shaders, matrix });
  for (const name of ["attend-matrix", "matrix-probe"]) shaders[name] = begin(shaders[name]);
}

/** A device of its own: pipelines are kept for each. */
async function newDevice(): Promise<GPUDevice> {
  return openDevice((await findAdapter((await findGpu()).gpu))!);
}

async function tryOnce(): Promise<boolean> {
  const device = await newDevice();
  const gpu = new Gpu(device);
  const isRight = await tryMatrixUnits(gpu);
  gpu.checkAlive();
  gpu.dispose();
  device.destroy();
  return isRight;
}

const usual: Partial<AttentionCase> = { preset: "k4v2_g128", headDim: 128 };

describe.skipIf(!hasGpu)("attention on matrix units", () => {
  let gpu: Gpu;
  beforeAll(async () => {
    emulate(emulated);
    gpu = new Gpu(await newDevice());
    gpu.matrixUnits = await tryMatrixUnits(gpu);
    expect(gpu.matrixUnits).toBe(true);
  });
  afterAll(() => {
    gpu.dispose();
    gpu.device.destroy();
  });
  const check = (given: Partial<AttentionCase>, tolerance?: number) =>
    checkAttention(gpu, { ...usual, ...given }, tolerance);

  it("over tiles and exact tokens", async () => {
    await check({ tiles: 3 });
    await check({ tiles: 19, kvHeads: 1, buffers: 2 });
  });

  it.each(["k2v2_g128", "k2v4_g128", "k4v4_g128"])("over codes of %s", async (preset) => {
    await check({ preset, tiles: 2, kvHeads: 1, half: true });
  });

  it("of rows that fill no block, or more than one", async () => {
    await check({ ratio: 3, tiles: 2, kvHeads: 1 });
    await check({ ratio: 5, queryTokens: 2, tiles: 2, scattered: true, sinkLogits: true });
  });

  it.each([20, 140, 266])("within a window of %d tokens, with a soft cap", async (slidingWindow) => {
    await check({ slidingWindow, softCap: 3, qScale: 4, tiles: 2, kvHeads: 1, queryTokens: 2 });
  });

  it("sharply, where one token outweighs the others", async () => {
    await check({ qScale: 64, tiles: 9, kvHeads: 1 }, 1e-4);
  });

  it("where scales are zero, and queries", async () => {
    const layout = recordLayout(parsePreset(usual.preset), 128);
    const change = (record: DataView) => {
      for (const at of [layout.kScale, layout.vScale, layout.vToken]) {
        for (let i = 0; i < 128; i += at === layout.vToken ? 1 : 3) record.setUint16(at + 2 * i, 0, true);
      }
    };
    await check({ change, tiles: 2, kvHeads: 1 });
    await check({ qScale: 0, tiles: 1, kvHeads: 1 });
  });

  it("finitely, with scales at the limits of binary16 and queries beyond", async () => {
    const layout = recordLayout(parsePreset(usual.preset), 128);
    const change = (record: DataView) => {
      for (const at of [layout.kScale, layout.kToken, layout.vToken, layout.vScale]) {
        for (let i = 0; i < 128; i++) record.setUint16(at + 2 * i, 0x7bff, true);
      }
    };
    const { attendOnce, dispose } = prepareAttention(gpu, { ...usual, change, qScale: 1e21, kvHeads: 1 });
    const out = new Float32Array((await attendOnce()).buffer);
    dispose();
    expect(out.every(Number.isFinite)).toBe(true);
  });

  it("only where products come out right", async () => {
    // The bytes of a matrix in another order, as another meaning of offsets would have them.
    emulate(emulated.replace("at % 16u * CODES_ROW", "at % 16u * (CODES_ROW - 1u)"));
    expect(await tryOnce()).toBe(false);
    // Subgroups of other invocations.
    emulate(emulated.replaceAll("exchange[invocation / 32u", "exchange[3u - invocation / 32u"));
    expect(await tryOnce()).toBe(false);
    emulate(real.shaders.matrix);
    expect(await tryOnce()).toBe(false);
    emulate(emulated);
    expect(await tryOnce()).toBe(true);
  });

  it("on a device that offers them", async () => {
    const device = await newDevice();
    const features = new Set([...device.features, "chromium-experimental-subgroup-matrix"]);
    Object.defineProperty(device, "features", { value: features });
    const adapterInfo = { vendor: "", architecture: "", subgroupMinSize: 32, subgroupMaxSize: 32 };
    Object.defineProperty(device, "adapterInfo", { value: adapterInfo });
    const compile = vi.spyOn(device, "createShaderModule");
    const kvarn = await openKvarn({ device });
    const shape = { layers: 1, kvHeads: 1, headDim: 128 };
    const cache = kvarn.createCache({ ...shape, queryHeads: 4, preset: "k4v2_g128" });
    const tokens = randomArray(300 * 128, 1);
    await cache.append(0, tokens, tokens);
    await cache.flush();
    await cache.attend(0, randomArray(4 * 128, 2));
    expect(compile.mock.calls.map(([{ label }]) => label)).toContain("attend-matrix");
    kvarn.dispose();
    device.destroy();
  });
});
