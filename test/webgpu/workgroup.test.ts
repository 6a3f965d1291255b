/**
 * Workgroup memory that holds anything at first: Dawn's devices in Node are told not to clear it, and what another kernel has
 * left there must not matter.
 */
import { afterAll, describe, expect, it } from "vitest";
import { type Kvarn, openKvarn } from "../../src/index.js";
import { findAdapter, findGpu } from "../../src/webgpu/adapter.js";
import { expectSame, filledCache, makeQueries, makeTokens } from "../support/cache.js";
import { hasGpu, sharedDevice } from "../support/engines.js";
import { randomArray } from "../support/random.js";

/** Statements that fill a variable of workgroup memory with what is surely wrong. */
function spoil(name: string, type: string): string {
  const [, element = type, count] = /^array<(.+), ([^,]+)>$/.exec(type) ?? [];
  const values: Record<string, string> = {
    f32: "3e38",
    u32: "0xfffffff0u",
    vec2f: "vec2f(3e38)",
    vec4f: "vec4f(3e38)",
    mat4x4f: "mat4x4f(vec4f(3e38), vec4f(3e38), vec4f(3e38), vec4f(3e38))",
    Rows: "Rows(3e38)",
  };
  const atomics: Record<string, string> = { "atomic<u32>": "0xfffffff0u", "atomic<i32>": "-0x7ffffff0" };
  const set = (place: string) =>
    element in atomics ? `atomicStore(&${place}, ${atomics[element]});` : `${place} = ${values[element]};`;
  if (!(element in atomics) && !(element in values)) throw new Error(`no value of type ${element}`);
  return count === undefined
    ? set(name)
    : `for (var i = 0u; i < u32(${count}); i++) { ${set(`${name}[i]`)} }`;
}

/** A kernel whose first invocation fills workgroup memory before anything else happens. */
function spoiled(code: string): string {
  const variables = [...code.matchAll(/^var<workgroup> (\w+): (.+);$/gm)];
  const [, index] = /@builtin\(local_invocation_index\) (\w+)/.exec(code) ?? [];
  if (variables.length === 0) return code;
  const filling = variables.map(([, name, type]) => spoil(name, type)).join(" ");
  const start = `if (${index} == 0u) { ${filling} } workgroupBarrier();`;
  return code.replace(/(@compute[^{]*\{)/, `$1 ${start}`);
}

describe.skipIf(!hasGpu)("whatever workgroup memory holds", async () => {
  if (!hasGpu) return;
  const device = await (await findAdapter((await findGpu()).gpu))!.requestDevice();
  const create = device.createShaderModule.bind(device);
  let changed = 0;
  device.createShaderModule = (descriptor) => {
    const code = spoiled(descriptor.code);
    if (code !== descriptor.code) changed++;
    return create({ ...descriptor, code });
  };
  const engines = await Promise.all([openKvarn({ device: sharedDevice() }), openKvarn({ device })]);
  afterAll(() => {
    for (const engine of engines) engine.dispose();
    device.destroy();
  });

  /** Expects the same bits with and without. */
  async function expectNoChange(
    run: (kvarn: Kvarn) => Promise<readonly (Float32Array | Uint8Array)[]>,
  ): Promise<void> {
    const before = changed;
    const [expected, actual] = [await run(engines[0]), await run(engines[1])];
    expect(changed).toBeGreaterThan(before);
    actual.forEach((one, i) => expectSame(one, expected[i]));
  }

  it("single kernels do the same", async () => {
    const shape = { rows: 32, columns: 64 };
    const x = randomArray(32 * 64, 1);
    await expectNoChange(async (kvarn) => {
      const rotated = await kvarn.rotate(x, { headDim: 32 });
      const { balanced, rowScale, columnScale } = await kvarn.normalize(x, { ...shape, iterations: 3 });
      const { codes, scale, zero } = await kvarn.pack(x, { ...shape, bits: 3 });
      return [rotated, balanced, rowScale, columnScale, codes, scale, zero];
    });
  });

  it("the refined encoder does the same, with queries and without", async () => {
    const shape = { queryHeads: 4, kvHeads: 2, headDim: 32 };
    const tokens = makeTokens(shape, 400);
    await expectNoChange(async (kvarn) => {
      const config = { ...shape, preset: "k2v3_g64", layers: 1, encoder: "refined" } as const;
      const cache = await filledCache(kvarn, config, tokens, [200]);
      await cache.flush();
      await cache.attend(0, makeQueries(shape, 7));
      await cache.append(0, ...tokens.slice(200, 400));
      await cache.flush();
      return [await cache.serialize()];
    });
  });

  it.each([
    [1, "k4v2_g64"],
    [5, "k3v4_g64"],
  ])("a cache does the same, %i query heads per KV head, %s", async (ratio, preset) => {
    const shape = { queryHeads: 2 * ratio, kvHeads: 2, headDim: 32 };
    const tokens = makeTokens(shape, 500);
    await expectNoChange(async (kvarn) => {
      const config = { ...shape, preset, layers: 1, iterations: 2, softCap: 30 };
      const cache = await filledCache(kvarn, config, tokens, [360, 140]);
      const outs: Float32Array[] = [];
      // Few and many rows, some of which see no record before the last.
      for (const queries of [1, 9, 420]) outs.push(await cache.attend(0, makeQueries(shape, queries)));
      const { k, v } = await kvarn.decode(await cache.exportRecords(0), { ...shape, preset });
      return [...outs, k, v, await cache.serialize()];
    });
  });
});
