import type { Gpu } from "../../src/webgpu/gpu.js";
import { type Kernel, makeKernel } from "../../src/webgpu/kernel.js";
import { type Constants, expandShader } from "../../src/webgpu/shader.js";
import { readText } from "../files.js";

/** A kernel of a shader that is not the package's. */
export async function readKernel(
  { device }: Gpu,
  name: string,
  entryPoint: string,
  constants: Constants,
): Promise<Kernel> {
  const source = await readText(`bench/webgpu/${name}.wgsl`);
  const code = expandShader(name, { [name]: source }, constants);
  const kernel = makeKernel(device, code, name, entryPoint, constants);
  await kernel.made;
  if (kernel.refusal !== undefined) throw new Error(kernel.refusal);
  return kernel;
}
