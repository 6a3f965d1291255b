/** Pipelines, made once for a device and a shape, whoever asks. */
import { KvarnError } from "../errors.js";
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

/** Adds shaders that are loaded only where they are needed. */
export function addShaders(more: Readonly<Record<string, string>>): void {
  Object.assign(sources, more);
}

let late: Promise<void> | undefined;

/**
 * Loads the shaders that few callers need: those of the refined encoder and of single kernels.
 * @throws {KvarnError} `backend-unavailable` where they are not to be had, for now
 */
export function loadLateShaders(): Promise<void> {
  return (late ??= import("./late-inlined.js").then(
    ({ shaders }) => addShaders(shaders),
    (cause: unknown) => {
      late = undefined;
      throw new KvarnError("backend-unavailable", `a part of kvarn could not be loaded: ${String(cause)}`, {
        cause,
      });
    },
  ));
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
    const forget = (): boolean => kernels.delete(key);
    kernels.set(key, (kernel = name in sources ? make() : makeLater(make, forget)));
  }
  return kernel;
}

/**
 * A kernel whose shader is still to be loaded.
 * @param forget called where it is not to be had, so that whoever asks next tries again
 */
function makeLater(make: () => Kernel, forget: () => void): Kernel {
  const kernel: Kernel = { pipeline: undefined, refusal: undefined, made: load() };
  return kernel;

  async function load(): Promise<void> {
    try {
      await loadLateShaders();
    } catch (error) {
      kernel.refusal = (error as Error).message;
      forget();
      return;
    }
    const made = make();
    await made.made;
    kernel.pipeline = made.pipeline;
    kernel.refusal = made.refusal;
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
