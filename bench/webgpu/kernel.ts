import { readFile } from "node:fs/promises";
import type { Gpu, Kernel } from "../../src/webgpu/gpu.js";
import { type Constants, expandShader, setOverrides } from "../../src/webgpu/shader.js";

/** A pipeline of a shader that is not the package's. The path is that of the sources: benchmarks run in the repository. */
export async function makeKernel(
  gpu: Gpu,
  name: string,
  entryPoint: string,
  constants: Constants,
): Promise<Kernel> {
  const source = await readFile(`bench/webgpu/${name}.wgsl`, "utf8");
  const code = expandShader(name, { [name]: source }, constants);
  const pipeline = await gpu.device.createComputePipelineAsync({
    layout: "auto",
    compute: {
      module: gpu.device.createShaderModule({ label: name, code }),
      entryPoint,
      constants: setOverrides(code, constants),
    },
  });
  return { pipeline, made: Promise.resolve() };
}
