/**
 * llama.cpp, native, on one thread, by node-llama-cpp: there is no calling its attention alone, so this is a whole decode step of
 * a model of one layer that is hardly more than attention. K and V are the model's own.
 */
import { inPage } from "../files.js";
import { attentionGguf } from "./gguf.js";
import { importPackage, packageName } from "./packages.js";
import { AbsentError, type OpenPeer, type Peer, PeerError, type Work } from "./peer.js";

/** Its own names of types for K and V. */
const TYPES = ["F16", "Q8_0", "Q4_0"] as const;
/** Filling a longer context takes minutes: each token attends to those before it. */
const MOST_TOKENS = 4_096;
/** Room that it never has to use: a full context would be shifted. */
const SPARE = 64;
const MODEL = "build/peers/attention.gguf";
/** Of the model: the first byte's. */
const FIRST_TOKEN = 3;

/** What of the package is used. */
interface Package {
  getLlama(
    options: object,
  ): Promise<{ loadModel(options: object): Promise<Model>; dispose(): Promise<void> }>;
  LlamaLogLevel: { readonly error: string };
}
interface Model {
  createContext(options: object): Promise<{ getSequence(): Sequence }>;
}
interface Sequence {
  readonly nextTokenIndex: number;
  evaluateWithoutGeneratingNewTokens(tokens: readonly number[]): Promise<void>;
  eraseContextTokenRanges(ranges: readonly { start: number; end: number }[]): Promise<void>;
}

/** Its types of cache. */
export async function llamaPeers(): Promise<Peer[]> {
  const backend = `llama.cpp in ${await packageName("node-llama-cpp")}`;
  return TYPES.map((type) => {
    const variant = `native ${type.toLowerCase()} cache`;
    return { backend, variant, isBaseline: false, open: (work) => open(type, work) };
  });
}

async function open(type: (typeof TYPES)[number], work: Work): Promise<OpenPeer> {
  const { tokens, queries } = work;
  if (inPage) throw new AbsentError("native code, not for pages");
  if (queries > 1 || tokens > MOST_TOKENS) {
    throw new PeerError(
      `timed with one query token and up to ${MOST_TOKENS} tokens: filling more takes minutes`,
    );
  }
  const llama = await importPackage<Package>("node-llama-cpp", "dist/index.js");
  const { writeFile } = await import("node:fs/promises");
  await writeFile(MODEL, await attentionGguf(work, tokens));
  const engine = await llama.getLlama({
    ...{
      gpu: false,
      build: "never",
      progressLogs: false,
      maxThreads: 1,
      logLevel: llama.LlamaLogLevel.error,
    },
  });
  const model = await engine.loadModel({ modelPath: MODEL, gpuLayers: 0 });
  const context = await model.createContext({
    ...{ contextSize: tokens + SPARE, batchSize: 512, threads: 1, flashAttention: true },
    experimentalKvCacheKeyType: type,
    experimentalKvCacheValueType: type,
  });
  const sequence = context.getSequence();
  const token = (i: number) => FIRST_TOKEN + ((i * 89) % 256);
  await sequence.evaluateWithoutGeneratingNewTokens(Array.from({ length: tokens - 1 }, (_, i) => token(i)));
  return {
    run: (call) => sequence.evaluateWithoutGeneratingNewTokens([token(call)]),
    reset: async () => {
      if (sequence.nextTokenIndex < tokens) return;
      await sequence.eraseContextTokenRanges([{ start: tokens - 1, end: tokens }]);
    },
    close: () => engine.dispose(),
  };
}
