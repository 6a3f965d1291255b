import { afterEach, describe, expect, it, vi } from "vitest";
import { type KvarnErrorCode, type OpenOptions, openKvarn, type WasmSource } from "../src/index.js";
import { openKvarn as openWasmOnly } from "../src/wasm-only.js";
import { openKvarn as openWebGpuOnly } from "../src/webgpu-only.js";
import { readBuild } from "../src/wasm/builds.js";
import * as inlined from "../src/wasm/inlined.js";
import { canRunRelaxed } from "../src/wasm/probe.js";
import { findAdapter, findGpu } from "../src/webgpu/adapter.js";
import { expectError } from "./support/cache.js";
import { hasGpu, hasHardwareGpu } from "./support/engines.js";
import { randomArray } from "./support/random.js";

const strict = readBuild(inlined, "strict");
const relaxed = readBuild(inlined, "relaxed");

/** Modules that are valid and not ours: an empty one, and one that imports a function. */
const EMPTY = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0);
const IMPORTING = Uint8Array.of(...EMPTY, 1, 4, 1, 96, 0, 0, 2, 7, 1, 1, 101, 1, 102, 0, 0);

const x = randomArray(128, 1);

/** Opens an engine, sees that it computes, and disposes of it. */
async function describeEngine(options?: OpenOptions, open = openKvarn) {
  const kvarn = await open(options);
  const there = await kvarn.rotate(x, { headDim: 64 });
  const back = await kvarn.rotate(there, { headDim: 64 });
  expect(back.every((value, i) => Math.abs(value - x[i]) < 1e-5)).toBe(true);
  kvarn.dispose();
  return kvarn.backend;
}

describe("openKvarn", () => {
  it.skipIf(hasHardwareGpu)("takes wasm by itself where there is no GPU, and says why", async () => {
    const expected = {
      kind: "wasm",
      variant: "strict",
      reason: expect.stringMatching(/^SIMD; this engine has.*; not WebGPU: /) as string,
    };
    expect(await describeEngine()).toEqual(expected);
    expect(await describeEngine({})).toEqual(expected);
    expect(await describeEngine({ backend: "auto" })).toEqual(expected);
    const reason = expect.stringMatching(/^SIMD; this engine has(?!.*WebGPU)/) as string;
    expect(await describeEngine({ backend: "wasm" })).toEqual({ ...expected, reason });
  });

  it.runIf(hasGpu && !hasHardwareGpu)("takes a GPU of software when it may", async () => {
    const message = /^the only GPU adapter is .*, software, which WASM beats; allowSoftwareAdapter takes it/;
    await expectError(() => openKvarn({ backend: "webgpu" }), "backend-unavailable", message);
    expect((await describeEngine({ allowSoftwareAdapter: true })).kind).toBe("wasm");
    expect(await describeEngine({ backend: "webgpu", allowSoftwareAdapter: true })).toMatchObject({
      kind: "webgpu",
      variant: "f32",
      adapter: { software: true },
      reason: expect.stringMatching(/ by (navigator\.gpu|the npm package webgpu)$/) as string,
    });
  });

  it.skipIf(!hasGpu)("takes the caller's device, and leaves it to the caller", async () => {
    const adapter = await findAdapter((await findGpu()).gpu);
    const device = await adapter!.requestDevice();
    for (const backend of ["auto", "webgpu"] as const) {
      const { kind, reason } = await describeEngine({ backend, device });
      expect({ kind, reason }).toEqual({ kind: "webgpu", reason: "on the caller's device" });
    }
    // It still works.
    await device.queue.onSubmittedWorkDone();
    const conflict = () => openKvarn({ backend: "wasm", device });
    await expectError(conflict, "invalid-argument", /^device is for the webgpu backend, got "wasm", too$/);
    device.destroy();
  });

  it("opens the engine of kvarn/wasm, and no other", async () => {
    for (const options of [undefined, {}, { backend: "wasm" }] satisfies (OpenOptions | undefined)[]) {
      const { kind, reason } = await describeEngine(options, openWasmOnly);
      expect({ kind, reason }).toEqual({
        kind: "wasm",
        reason: expect.stringMatching(/^SIMD(?!.*WebGPU)/) as string,
      });
    }
    for (const backend of ["webgpu", "reference"] as const) {
      const message = new RegExp(
        `^this entry point of the package has no ${backend} backend: import from "kvarn"`,
      );
      await expectError(() => openWasmOnly({ backend }), "backend-unavailable", message);
    }
    await expectError(() => openWasmOnly({ variant: "f32" }), "backend-unavailable", /^the wasm backend has/);
    await expectError(() => openWasmOnly({ threads: 0 }), "invalid-argument", /^threads must be/);
  });

  it.runIf(hasGpu)("opens the engine of kvarn/webgpu, and no other", async () => {
    for (const backend of ["auto", "webgpu"] as const) {
      const { kind } = await describeEngine({ backend, allowSoftwareAdapter: true }, openWebGpuOnly);
      expect(kind).toBe("webgpu");
    }
    for (const backend of ["wasm", "reference"] as const) {
      await expectError(() => openWebGpuOnly({ backend }), "backend-unavailable", /has no \w+ backend/);
    }
    if (!hasHardwareGpu) {
      await expectError(() => openWebGpuOnly(), "backend-unavailable", /^the only GPU adapter is/);
    }
  });

  it.each([null, 5, {}])("refuses %j for a device", async (device) => {
    const open = () => openKvarn({ device: device as GPUDevice });
    await expectError(open, "invalid-argument", /^device must be a GPUDevice, got /);
  });

  it.each(["strict", "", null, 5])("refuses the variant %j of webgpu", async (variant) => {
    await expectError(
      () => openKvarn({ backend: "webgpu", variant: variant as string, allowSoftwareAdapter: true }),
      "backend-unavailable",
      /^the webgpu backend has one variant, "f32", not /,
    );
  });

  it.each([
    ["wasm", "strict"],
    ["auto", "strict"],
    ["wasm", "strict-f32"],
    ["auto", "strict-f32"],
  ] as const)("opens %s with the variant %s", async (backend, variant) => {
    expect(await describeEngine({ backend, variant })).toEqual({
      kind: "wasm",
      variant,
      reason: "asked for by name",
    });
  });

  it("opens the reference backend by name", async () => {
    const expected = { kind: "reference", variant: "f64", reason: "asked for by name" };
    expect(await describeEngine({ backend: "reference" })).toEqual(expected);
    expect(await describeEngine({ backend: "reference", variant: "f64" })).toEqual(expected);
  });

  it("opens engines that do not know each other", async () => {
    const [one, other] = await Promise.all([openKvarn(), openKvarn()]);
    const cache = other.createCache({ layers: 1, queryHeads: 1, kvHeads: 1, headDim: 64 });
    await cache.append(0, x, x);
    one.dispose();
    expect(cache.length(0)).toBe(2);
    expect(await cache.attend(0, x.subarray(0, 64))).toHaveLength(64);
    other.dispose();
    await expectError(() => cache.length(0), "disposed");
  });

  it.each([
    ["WebGPU", '"WebGPU"'],
    ["WASM", '"WASM"'],
    ["", '""'],
    [null, "null"],
    [1, "1"],
    [{}, "a value of type Object"],
  ])("refuses the backend %j", async (backend, described) => {
    const error = await expectError(
      () => openKvarn({ backend: backend as "auto" }),
      "invalid-argument",
      /^backend must be one of "auto", "webgpu", "wasm", "reference", got /,
    );
    expect(error.message.endsWith(`got ${described}`)).toBe(true);
  });

  it.each([null, 5, "wasm"])("refuses %j for options", async (options) => {
    await expectError(
      () => openKvarn(options as OpenOptions),
      "invalid-argument",
      /^options must be an object, got /,
    );
  });

  it.each(["relaxed-f16", "f64", "", "STRICT", null, 5])(
    "refuses the variant %j of wasm",
    async (variant) => {
      for (const backend of ["wasm", "auto"] as const) {
        await expectError(
          () => openKvarn({ backend, variant: variant as string }),
          "backend-unavailable",
          /^the wasm backend has the variants "strict", "strict-f32", "relaxed", "relaxed-f32", not /,
        );
      }
    },
  );

  it.each(["strict", "", null, 5])("refuses the variant %j of reference", async (variant) => {
    await expectError(
      () => openKvarn({ backend: "reference", variant: variant as string }),
      "backend-unavailable",
      /^the reference backend has one variant, "f64", not /,
    );
  });

  it.each(["relaxed", "relaxed-f32"])(
    "opens %s where relaxed SIMD runs, and else says why not",
    async (variant) => {
      if (canRunRelaxed()) {
        expect((await describeEngine({ backend: "wasm", variant })).variant).toBe(variant);
        return;
      }
      for (const backend of ["wasm", "auto"] as const) {
        await expectError(
          () => openKvarn({ backend, variant }),
          "backend-unavailable",
          /^this runtime .*relaxed SIMD/,
        );
      }
    },
  );
});

describe("openKvarn with a module given", () => {
  const embedded = new Uint8Array(strict.length + 20).fill(1);
  embedded.set(strict, 7);
  const sources: [string, () => WasmSource | Promise<WasmSource>][] = [
    ["a module", () => WebAssembly.compile(strict)],
    ["an ArrayBuffer", () => strict.slice().buffer],
    ["a Uint8Array", () => strict],
    ["a part of a Uint8Array", () => embedded.subarray(7, 7 + strict.length)],
    ["a Buffer", () => Buffer.from(strict)],
    ["a DataView", () => new DataView(embedded.buffer, 7, strict.length)],
    ["a Response", () => new Response(strict)],
    [
      "a Response of its type",
      () => new Response(strict, { headers: { "Content-Type": "application/wasm" } }),
    ],
  ];
  it.each(sources)("takes %s", async (_, source) => {
    const expected = { kind: "wasm", variant: "strict", reason: "SIMD, from the module given" };
    const options = hasHardwareGpu ? ({ backend: "wasm" } as const) : {};
    expect(await describeEngine({ ...options, wasm: await source() })).toMatchObject({
      kind: "wasm",
      reason: expect.stringMatching(/^SIMD, from the module given/) as string,
    });
    expect(await describeEngine({ backend: "wasm", wasm: await source() })).toEqual(expected);
    const variant = "strict-f32";
    expect(await describeEngine({ backend: "wasm", wasm: await source(), variant })).toMatchObject({
      variant,
    });
  });

  it("compiles nothing when given a module", async () => {
    const wasm = await WebAssembly.compile(strict);
    const compile = vi.spyOn(WebAssembly, "compile");
    await describeEngine({ wasm });
    expect(compile).not.toHaveBeenCalled();
    compile.mockRestore();
  });

  const used = async () => {
    const response = new Response(strict);
    await response.arrayBuffer();
    return response;
  };
  const refused: [string, () => unknown, KvarnErrorCode, RegExp][] = [
    ["text", () => "kvarn.wasm", "invalid-argument", /^wasm must be .* got "kvarn\.wasm"$/],
    ["a number", () => 5, "invalid-argument", /^wasm must be .* got 5$/],
    ["null", () => null, "invalid-argument", /^wasm must be .* got null$/],
    ["a list of bytes", () => [...EMPTY], "invalid-argument", /^wasm must be .* got a value of type Array$/],
    [
      "a URL",
      () => new URL("https://example.org/kvarn.wasm"),
      "invalid-argument",
      /^wasm must be .* got a value of type URL$/,
    ],
    ["a foreign module", () => EMPTY, "invalid-argument", /^the module given in `wasm` is not kvarn\.wasm$/],
    [
      "no bytes",
      () => new Uint8Array(0),
      "backend-unavailable",
      /^the module given in `wasm` cannot be compiled here/,
    ],
    ["garbage", () => new Uint8Array(100).fill(7), "backend-unavailable", /cannot be compiled here/],
    ["half of a module", () => strict.subarray(0, 5000), "backend-unavailable", /cannot be compiled here/],
    [
      "a Response of garbage",
      () => new Response("not found"),
      "backend-unavailable",
      /cannot be compiled here/,
    ],
    ["a Response that is used up", used, "backend-unavailable", /cannot be compiled here/],
    [
      "a module with imports",
      () => IMPORTING,
      "backend-unavailable",
      /^the module cannot be instantiated here/,
    ],
  ];
  it.each(refused)("refuses %s", async (_, source, code, message) => {
    const open = async (backend: "wasm" | "auto") =>
      openKvarn({ backend, wasm: (await source()) as WasmSource });
    await expectError(() => open("wasm"), code, message);
    if (code === "backend-unavailable") {
      const { backend } = await open("auto");
      expect(backend.kind).toBe("reference");
      expect(backend.reason.replace("plain TypeScript, slow: ", "")).toMatch(message);
    } else {
      await expectError(() => open("auto"), code, message);
    }
  });

  it("refuses the build that the variant does not name", async () => {
    for (const variant of ["relaxed", "relaxed-f32"]) {
      await expectError(
        () => openKvarn({ backend: "wasm", wasm: strict, variant }),
        "backend-unavailable",
        /^variant "relaxed(-f32)?" was asked for, but the module given in `wasm` is the strict build$/,
      );
    }
  });

  it("takes the relaxed build where it runs, and else says why not", async () => {
    if (canRunRelaxed()) {
      expect(await describeEngine({ backend: "wasm", wasm: relaxed })).toMatchObject({ variant: "relaxed" });
      return;
    }
    const message = /^the module given in `wasm` cannot be compiled here: CompileError.*relaxed/;
    await expectError(() => openKvarn({ backend: "wasm", wasm: relaxed }), "backend-unavailable", message);
    const { kind, reason } = await describeEngine({ wasm: relaxed });
    expect(kind).toBe("reference");
    expect(reason).toMatch(/^plain TypeScript, slow: the module given/);
  });
});

describe("openKvarn where WebAssembly does not do", () => {
  afterEach(() => {
    vi.restoreAllMocks();
    vi.unstubAllGlobals();
  });

  const blocked = () => new WebAssembly.CompileError("blocked by a content security policy");
  const failures: [string, () => void, RegExp][] = [
    ["it is missing", () => vi.stubGlobal("WebAssembly", undefined), /this runtime has no WebAssembly/],
    ["it has no SIMD", () => vi.spyOn(WebAssembly, "validate").mockReturnValue(false), /has no SIMD/],
    [
      "compiling is refused",
      () => vi.spyOn(WebAssembly, "compile").mockRejectedValue(blocked()),
      /the strict module cannot be compiled here \(CompileError: blocked by a .*pass kvarn\/kvarn\.wasm/,
    ],
    [
      "compiling throws",
      () =>
        vi.spyOn(WebAssembly, "compile").mockImplementation(() => {
          throw blocked();
        }),
      /the strict module cannot be compiled here/,
    ],
    [
      "instantiating is refused",
      () => vi.spyOn(WebAssembly, "instantiate").mockRejectedValue(new RangeError("no memory left")),
      /the module cannot be instantiated here: RangeError: no memory left/,
    ],
  ];

  it.each(failures)("falls back where %s, and says why", async (_, stub, reason) => {
    // Fresh: compiled modules are kept.
    vi.resetModules();
    const fresh = await import("../src/index.js");
    stub();
    const backend = await describeEngine({}, fresh.openKvarn);
    expect(backend).toMatchObject({ kind: "reference", variant: "f64" });
    expect(backend.reason).toMatch(/^plain TypeScript, slow: /);
    expect(backend.reason).toMatch(reason);
    const error: unknown = await fresh.openKvarn({ backend: "wasm" }).catch((error: unknown) => error);
    expect(error).toBeInstanceOf(fresh.KvarnError);
    expect(error).toMatchObject({
      code: "backend-unavailable",
      message: expect.stringMatching(reason) as string,
    });
    // The reference backend needs none of it.
    expect(await describeEngine({ backend: "reference" }, fresh.openKvarn)).toMatchObject({
      kind: "reference",
    });

    // And it is not remembered.
    vi.restoreAllMocks();
    vi.unstubAllGlobals();
    expect(await describeEngine({}, fresh.openKvarn)).toMatchObject({ kind: "wasm" });
  });

  it("compiles once for all engines", async () => {
    vi.resetModules();
    const fresh = await import("../src/index.js");
    const compile = vi.spyOn(WebAssembly, "compile");
    const engines = await Promise.all([
      fresh.openKvarn(),
      fresh.openKvarn(),
      fresh.openKvarn({ variant: "strict-f32" }),
    ]);
    expect(compile).toHaveBeenCalledTimes(1);
    engines.forEach((engine) => engine.dispose());
  });
});
