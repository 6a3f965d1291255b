/** What was measured elsewhere, on other machines or in other programs. Beside matching cases, never compared with. */

interface Reference {
  /** How a case is recognized. */
  readonly backend: "wasm" | "webgpu";
  readonly name: string;
  /** Part of the case's description, or empty. */
  readonly of: string;
  readonly text: string;
}

const REFERENCES: readonly Reference[] = [
  ...[
    { of: "t4196", context: "4,096", cudnn: 18, flash: 25, kvarn: 22 },
    { of: "t32868", context: "32,768", cudnn: 63, flash: 71, kvarn: 119 },
    { of: "t131172", context: "131,072", cudnn: 192, flash: 208, kvarn: 441 },
  ].map(({ of, context, cudnn, flash, kvarn }): Reference => {
    return {
      ...{ backend: "webgpu", name: "attend", of },
      text:
        `one token over ${context} on an H100: cuDNN in f16 ${cudnn} us, FlashAttention ${flash} us, ` +
        `KVarN's Triton kernel (k4v2) ${kvarn} us`,
    };
  }),
  {
    ...{ backend: "webgpu", name: "encode", of: "" },
    text: "KVarN's Triton normalization alone, 8 iterations, on an H100: 0.53 million tiles/s",
  },
  {
    ...{ backend: "wasm", name: "attend", of: "d128" },
    text:
      "ggml's q4_0 x q8_0 score in WebAssembly on a 2-core Xeon, Node 20: 12.9 ns for a row of 128 and a query head " +
      "(over 4,096 tokens and 32 heads, scores alone, 1,691 us)",
  },
];

/** The references for some cases. */
export function referencesFor(lines: readonly { name: string; case: string; backend: string }[]): string[] {
  return REFERENCES.filter(({ backend, name, of }) =>
    lines.some((line) => line.backend === backend && line.name === name && line.case.includes(of)),
  ).map(({ text }) => text);
}
