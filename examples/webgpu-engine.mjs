// Decode steps of an engine that has a WebGPU device of its own: keys, values, queries and outputs stay in its buffers.
/* global GPUBufferUsage, GPUMapMode */
import { openKvarn } from "kvarn";

// #region device
let gpu = globalThis.navigator?.gpu;
if (!gpu) {
  // Node: `npm install webgpu`. Keep `gpu` for as long as the device is used.
  const webgpu = await import("webgpu");
  Object.assign(globalThis, webgpu.globals);
  gpu = webgpu.create([]);
}
const adapter = await gpu.requestAdapter();
if (!adapter) throw new Error("no GPU adapter");
const device = await adapter.requestDevice();
const kvarn = await openKvarn({ device });
// #endregion

const [layers, queryHeads, kvHeads, headDim] = [2, 8, 2, 64];
const cache = kvarn.createCache({ layers, queryHeads, kvHeads, headDim });

// The engine: made-up numbers stand for its projections, as f32 after RoPE.
const prompt = 300;
const bytes = (tokens, heads) => tokens * heads * headDim * 4;
const buffer = (size) =>
  device.createBuffer({ size, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
const [q, out] = [0, 1].map(() => buffer(bytes(1, queryHeads)));
const [k, v] = [0, 1].map(() => buffer(bytes(prompt, kvHeads)));
const module = device.createShaderModule({
  code: /* wgsl */ `
    @group(0) @binding(0) var<storage, read_write> tensor: array<f32>;
    override seed: u32;
    @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
      if (id.x >= arrayLength(&tensor)) { return; }
      var x = id.x * 0x9e3779b9u + seed;
      x = (x ^ (x >> 15)) * 0x85ebca6bu;
      tensor[id.x] = f32((x ^ (x >> 13)) >> 16) / 32768 - 1;
    }`,
});

/** Records a pass of the engine's own, which fills a tensor. */
function project(commandEncoder, tensor, seed) {
  const compute = { module, entryPoint: "main", constants: { seed } };
  const pipeline = device.createComputePipeline({ layout: "auto", compute });
  const entries = [{ binding: 0, resource: { buffer: tensor } }];
  const pass = commandEncoder.beginComputePass();
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }));
  pass.dispatchWorkgroups(Math.ceil(tensor.size / 256));
  pass.end();
}

// #region step
/** Projections and append in one command buffer, attention in the next. */
async function step(layer, tokens, seed) {
  const tensor = (buffer, tokens) => ({ buffer, offset: 0, type: "f32", tokens }); // or "f16"; usage STORAGE
  let commandEncoder = device.createCommandEncoder();
  project(commandEncoder, k, seed);
  project(commandEncoder, v, seed + 1);
  project(commandEncoder, q, seed + 2);
  await cache.append(layer, tensor(k, tokens), tensor(v, tokens), { commandEncoder });
  device.queue.submit([commandEncoder.finish()]); // before the next call on this engine

  commandEncoder = device.createCommandEncoder();
  await cache.attend(layer, tensor(q, 1), { out: tensor(out, 1), commandEncoder });
  // Here the engine records what goes on with `out`.
  device.queue.submit([commandEncoder.finish()]);
}
// #endregion

for (let layer = 0; layer < layers; layer++) await step(layer, prompt, 1000 * layer);
for (let token = 1; token <= 3; token++) {
  for (let layer = 0; layer < layers; layer++) await step(layer, 1, 1000 * layer + 10 * token);
}
console.log(kvarn.backend.kind, cache.length(1), cache.recordRange(1));

// The last output, against the CPU's on the same cache.
async function download(source) {
  const size = source.size;
  const target = device.createBuffer({ size, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
  const commandEncoder = device.createCommandEncoder();
  commandEncoder.copyBufferToBuffer(source, 0, target, 0, size);
  device.queue.submit([commandEncoder.finish()]);
  await target.mapAsync(GPUMapMode.READ);
  return new Float32Array(target.getMappedRange().slice());
}
const onGpu = await download(out);
const cpu = await openKvarn({ backend: "wasm" });
const moved = await kvarn.migrate(cache, cpu);
const onCpu = await moved.attend(1, await download(q));
const difference = Math.hypot(...onGpu.map((value, i) => value - onCpu[i])) / Math.hypot(...onCpu);
console.log("difference from the CPU:", difference.toExponential(1));
cpu.dispose();
kvarn.dispose();
device.destroy();
