/** Pipelines, made once for a device and a shape, whoever asks. */
import { shaders } from "./inlined.js";
import { type Constants, expandShader, setOverrides } from "./shader.js";

/** A pipeline for one shape. */
export interface Kernel {
  pipeline: GPUComputePipeline | undefined;
  /** Why there will be none. */
  refusal: string | undefined;
  /** Resolves when the pipeline is there or refused. */
  readonly made: Promise<void>;
}

const sources: Record<string, string> = { ...shaders };

/** Adds shaders that are loaded only where they can be used. */
export function addShaders(more: Readonly<Record<string, string>>): void {
  Object.assign(sources, more);
}

const kernelsOf = new WeakMap<GPUDevice, Map<string, Kernel>>();

/** The pipeline of a shader in `shaders/` for these constants, see `Gpu.kernel`. */
export function kernelOn(device: GPUDevice, name: string, constants: Constants): Kernel {
  let kernels = kernelsOf.get(device);
  if (!kernels) kernelsOf.set(device, (kernels = new Map<string, Kernel>()));
  const key = `${name} ${JSON.stringify(constants)}`;
  let kernel = kernels.get(key);
  if (!kernel) {
    const make = (): Kernel => {
      const code = expandShader(name, sources, constants);
      return makeKernel(device, code, name, name.replaceAll("-", "_"), constants);
    };
    kernels.set(key, (kernel = name in sources ? make() : makeLater(make)));
  }
  return kernel;
}

/** A kernel that few callers need: the shaders of those are loaded when the first of them is asked for. */
function makeLater(make: () => Kernel): Kernel {
  const kernel: Kernel = { pipeline: undefined, refusal: undefined, made: load() };
  return kernel;

  async function load(): Promise<void> {
    try {
      addShaders((await import("./late-inlined.js")).shaders);
      const made = make();
      await made.made;
      kernel.pipeline = made.pipeline;
      kernel.refusal = made.refusal;
    } catch (error) {
      kernel.refusal = `shaders are not to be had: ${String(error)}`;
    }
  }
}

/** Makes the pipeline of expanded code. */
export function makeKernel(
  device: GPUDevice,
  code: string,
  label: string,
  entryPoint: string,
  constants: Constants,
): Kernel {
  const module = device.createShaderModule({ label, code });
  const made = device
    .createComputePipelineAsync({
      label,
      layout: "auto",
      compute: { module, entryPoint, constants: setOverrides(code, constants) },
    })
    .then(
      (pipeline) => {
        kernel.pipeline = pipeline;
      },
      async (error: unknown) => {
        const { messages } = await module.getCompilationInfo();
        const said = messages.map(({ message, lineNum }) => `${message} (line ${lineNum})`).join("; ");
        kernel.refusal = `the GPU device refuses the kernel ${label}: ${said || String(error)}`;
      },
    );
  const kernel: Kernel = { pipeline: undefined, refusal: undefined, made };
  return kernel;
}
