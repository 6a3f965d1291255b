/**
 * What a program that uses the package does, in any JavaScript runtime: opens every backend that is there, runs the
 * conformance suite on it, makes mistakes on purpose, and disposes of everything. It imports `kvarn` by name, touches
 * nothing but the language, and returns plain JSON.
 */
import { bytesFor, KvarnError, openKvarn } from "kvarn";
import { adapterOf, runConformance } from "kvarn/conformance";
import { rotate } from "kvarn/reference";

const SHAPE = { preset: "k4v2_g64", queryHeads: 4, kvHeads: 2, headDim: 64, layers: 1 };
/** The sink, a tile that is encoded, and the beginning of a third. */
const TOKENS = 150;

/**
 * @param options `wasm`: what to compile, where the inlined bytes may not be; `gpu`: false to leave the GPU out; `threads`:
 * false to start none; `subjects`: by kind of backend, those of the suite to run, where it is not to run as a whole
 * @returns `auto`: what `openKvarn` takes by itself; `engines`: what each engine that runs here did; `absent`: why the
 * others do not run; `mistakes`: the codes of errors in opening one; `threads`: what two of them did, or why there are none; `runtime`: what it
 * says of itself
 */
export async function check({ wasm, gpu = true, threads = true, subjects = {} } = {}) {
  const auto = await openKvarn({ wasm });
  auto.dispose();
  const engines = [];
  const absent = [];
  for (const options of [
    ...(gpu ? [{ backend: "webgpu", allowSoftwareAdapter: true }] : []),
    { backend: "wasm", variant: "strict", wasm },
    { backend: "wasm", variant: "strict-f32", wasm },
    { backend: "wasm", variant: "relaxed", wasm },
    { backend: "reference" },
  ]) {
    const { backend, variant } = options;
    try {
      engines.push(await checkEngine(await openKvarn(options), subjects[backend]));
    } catch (error) {
      if (codeOf(error) !== "backend-unavailable") throw error;
      absent.push({ backend, variant, reason: error.message });
    }
  }
  const mistakes = await codesOf([
    () => openKvarn({ backend: "cuda" }),
    () => openKvarn({ backend: "wasm", variant: "avx" }),
    () => openKvarn({ backend: "wasm", wasm: 5 }),
    () => openKvarn({ backend: "reference", device: {} }),
  ]);
  return {
    runtime: describeRuntime(),
    auto: auto.backend,
    engines,
    absent,
    mistakes,
    threads: threads ? await checkThreads() : { absent: "not asked for" },
    bytes: bytesFor(SHAPE, TOKENS).totalBytes,
  };
}

function describeRuntime() {
  const { process, navigator } = globalThis;
  const { bun, deno, node } = process?.versions ?? {};
  return {
    // Bun and Deno claim to be Node, too.
    version: bun ?? deno ?? node ?? navigator?.userAgent ?? "",
    float16Array: "Float16Array" in globalThis,
  };
}

async function checkEngine(kvarn, subjects) {
  const { checks, counts } = await runConformance(adapterOf(kvarn), { subjects });
  const conformance = {
    passed: counts.passed,
    others: checks.filter(({ status }) => status !== "passed"),
  };

  const draw = generator();
  const random = (length) => Float32Array.from({ length }, draw);
  const [k, v] = [0, 1].map(() => random(TOKENS * SHAPE.kvHeads * SHAPE.headDim));
  const q = random(SHAPE.queryHeads * SHAPE.headDim);
  const cache = kvarn.createCache(SHAPE);
  await cache.append(0, k, v);
  await cache.flush();
  const rotation = difference(await kvarn.rotate(q, SHAPE), rotate(q, SHAPE.headDim));
  const held = cache.memory().totalBytes;
  const mistakes = await codesOf([
    () => kvarn.createCache({ ...SHAPE, headDim: 50 }),
    () => kvarn.createCache({ ...SHAPE, preset: "k1v1_g1" }),
    () => cache.append(0, k, v.subarray(1)),
    () => cache.append(0, k.fill(NaN), v),
    () => cache.attend(1, q),
    () => kvarn.restoreCache(new Uint8Array(100)),
  ]);
  const length = cache.length(0);
  kvarn.dispose();
  const afterwards = await codesOf([() => cache.attend(0, q), () => kvarn.rotate(q, SHAPE)]);
  return { ...kvarn.backend, conformance, rotation, held, length, mistakes, afterwards };
}

/** Whether two threads make the same of tokens as one does. They are left to end with the program. */
async function checkThreads() {
  let two;
  try {
    two = await openKvarn({ backend: "wasm", threads: 2 });
  } catch (error) {
    if (codeOf(error) !== "backend-unavailable") throw error;
    return { absent: error.message };
  }
  const one = await openKvarn({ backend: "wasm" });
  const draw = generator();
  const random = (length) => Float32Array.from({ length }, draw);
  const tokens = 1000;
  const [k, v] = [0, 1].map(() => random(tokens * SHAPE.kvHeads * SHAPE.headDim));
  const q = random(SHAPE.queryHeads * SHAPE.headDim);
  const results = [];
  for (const kvarn of [one, two]) {
    const cache = kvarn.createCache(SHAPE);
    await cache.append(0, k, v);
    await cache.flush();
    results.push({ bytes: await cache.serialize(), out: await cache.attend(0, q) });
  }
  one.dispose();
  const [expected, actual] = results;
  return {
    reason: two.backend.reason,
    sameBytes: actual.bytes.every((byte, i) => byte === expected.bytes[i]),
    difference: difference(actual.out, expected.out),
  };
}

/** The codes of the errors that calls throw, at once or later. */
async function codesOf(calls) {
  const codes = [];
  for (const call of calls) {
    try {
      await call();
      codes.push("none");
    } catch (error) {
      codes.push(codeOf(error));
    }
  }
  return codes;
}

function codeOf(error) {
  return error instanceof KvarnError ? error.code : String(error);
}

/** The relative L2 difference. */
function difference(actual, expected) {
  const energy = (values) => values.reduce((sum, value) => sum + value * value, 0);
  return Math.sqrt(energy(actual.map((value, i) => value - expected[i])) / energy(expected));
}

/** Repeatable numbers from -1 to 1. */
function generator() {
  let state = 0x6b76;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state / 2 ** 31;
  };
}
