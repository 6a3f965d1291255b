/** Shaders that few callers need, and that are loaded when one does. */
import { expect, it, vi } from "vitest";
import type * as KernelModule from "../../src/webgpu/kernel.js";
import { expectError } from "../support/cache.js";
import { hasGpu, sharedDevice } from "../support/engines.js";

const shaders = "../../src/webgpu/late-inlined.js";

it.skipIf(!hasGpu)("are named where they cannot be loaded, and asked for again", async () => {
  // A module of the test's own, as what is loaded stays so.
  const path = "../../src/webgpu/kernel.js?of-its-own";
  const { kernelOn, loadLateShaders } = (await import(path)) as typeof KernelModule;
  const kernel = () => kernelOn(sharedDevice(), "unpack", { BITS: 4, COLUMNS: 32, RAW: 1 });

  vi.doMock(shaders, () => Promise.reject(new Error("offline")));
  await expectError(() => loadLateShaders(), "backend-unavailable", /^a part of kvarn could not be loaded: /);
  const refused = kernel();
  expect(kernel()).toBe(refused);
  await refused.made;
  expect(refused).toMatchObject({
    pipeline: undefined,
    refusal: expect.stringContaining("loaded") as string,
  });

  vi.doUnmock(shaders);
  const made = kernel();
  await made.made;
  expect(made.refusal).toBeUndefined();
  expect(made.pipeline).toBeDefined();
  await loadLateShaders();
});
