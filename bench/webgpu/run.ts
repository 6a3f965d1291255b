/**
 * The public calls on a GPU, by its own clock: attention of one token beside attention over an uncompressed cache in binary16 and
 * beside peers, of many tokens beside the same over exact ones, encoding beside a rotation of the same tiles, the refined encoder
 * beside the strict one, and attention of one token and encoding beside the time that the same device takes to copy.
 */
import { type Kvarn, KvarnError, openKvarn } from "../../src/index.js";
import { describeAdapter, findAdapter, findGpu, makeDawn, openDevice } from "../../src/webgpu/adapter.js";
import { nameOf } from "../../src/webgpu/index.js";
import { onnxruntimeGpuPeers } from "../peers/onnxruntime-webgpu.js";
import { Refusals } from "../peers/refusals.js";
import { type Line, type Report, titleOf } from "../report.js";
import {
  attendCase,
  encodeCase,
  type GpuCase,
  noteCase,
  prefillCase,
  presetCase,
  refineCase,
} from "./cases.js";
import { openPeerDevice } from "./device.js";
import { type GpuEffort, GpuTimer } from "./timer.js";

const FULL: GpuEffort = { warmUpMs: 1000, calls: 50, samples: 15, heats: 200, mostTokens: Infinity };
const QUICK: GpuEffort = { warmUpMs: 0, calls: 1, samples: 1, heats: 0, mostTokens: 300 };

/** As the package's own Dawn, and with experiments. */
const UNSAFE = "enable-dawn-features=disable_workgroup_init,allow_unsafe_apis";

/** Gates are for GPUs of hardware. */
export const gpuCases: readonly GpuCase[] = [
  attendCase("k4v2_g128", 4_096, { ofF16: { gate: { most: 1 }, aim: { most: 0.7 } } }),
  attendCase("k4v2_g128", 32_768),
  attendCase("k4v2_g128", 131_072, { ofBytes: { gate: { most: 2.5 }, aim: { most: 1.5 } } }),
  presetCase("k2v2_g128", "k4v2_g128", 131_072, { gate: { most: 1 }, aim: { most: 0.9 } }),
  presetCase("k4v4_g128", "k4v2_g128", 131_072, { gate: { most: 1.3 }, aim: { most: 1.15 } }),
  prefillCase("k4v2_g128", 8, 8_192),
  prefillCase("k4v2_g128", 512, 8_192, { gate: { most: 1.3 }, aim: { most: 1 } }),
  encodeCase("k4v2_g128", { gate: { most: 12 }, aim: { most: 6 } }),
  refineCase("k2v2_g128", false, { gate: { most: 3 } }),
  refineCase("k2v2_g128", true, { gate: { most: 6 } }),
  refineCase("k4v4_g128", true, { gate: { most: 6 } }),
  noteCase("k4v2_g128", 4_096),
];

/**
 * Runs the cases that are wanted.
 * @throws {KvarnError} `backend-unavailable` where there is no GPU, or none with a clock
 */
export async function runGpuCases(
  { quick, matrix }: { quick: boolean; matrix: boolean },
  isWanted: (one: GpuCase) => boolean,
  progress: (title: string) => void,
): Promise<Report> {
  const chosen = gpuCases.filter(isWanted);
  const adapter = await findAdapter(matrix ? await makeDawn([UNSAFE]) : (await findGpu()).gpu);
  if (!adapter) throw new KvarnError("backend-unavailable", "no GPU adapter");
  if (!adapter.features.has("timestamp-query")) {
    throw new KvarnError("backend-unavailable", "its WebGPU has no clock (timestamp-query)");
  }
  const device = await openDevice(adapter);
  let kvarn: Kvarn | undefined;
  let peerDevice: GPUDevice | undefined;
  const refusals = new Refusals();
  const lines: Line[] = [];
  try {
    kvarn = await openKvarn({ device });
    const peers = await onnxruntimeGpuPeers();
    const effort = quick ? QUICK : FULL;
    const timer = new GpuTimer(device, effort);
    const peerTimer = async () => new GpuTimer((peerDevice ??= await openPeerDevice()), effort);
    for (const one of chosen) {
      progress(titleOf(one));
      const refuse = (peer: (typeof peers)[number], error: unknown) => {
        refusals.add(peer, titleOf(one), error);
      };
      lines.push(...(await one.run({ kvarn, timer, peers, peerTimer, refuse })));
    }
  } finally {
    kvarn?.dispose();
    device.destroy();
    peerDevice?.destroy();
  }
  const info = describeAdapter(device.adapterInfo);
  if (!info.software) return { title: `webgpu f32 on ${nameOf(info)}`, lines, absent: refusals.list() };
  return {
    title: `webgpu f32 on ${nameOf(info)}, which computes on the CPU: this shows that it runs, its times mean nothing, and gates are not judged`,
    lines: lines.map((line): Line => ({ ...line, gate: undefined, aim: undefined })),
    absent: refusals.list(),
  };
}
