/** The package's types in a user's project: strict, with the settings that users have. */
import { mkdirSync, symlinkSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import ts from "typescript";
import { afterAll, describe, expect, it } from "vitest";
import { installPackage } from "./install.js";

const { root, remove } = installPackage(["consumer.ts"]);
afterAll(remove);
for (const types of ["@types/node", "@webgpu/types", "undici-types"]) {
  const path = join(root, "node_modules", types);
  mkdirSync(dirname(path), { recursive: true });
  symlinkSync(resolve("node_modules", types), path);
}

const BUNDLER = { module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler };
const NODE16 = { module: ts.ModuleKind.Node16, moduleResolution: ts.ModuleResolutionKind.Node16 };

const settings: Record<string, ts.CompilerOptions> = {
  "bundler, DOM": { ...BUNDLER, lib: ["dom"], types: [] },
  "bundler, web worker": { ...BUNDLER, lib: ["webworker"], types: [] },
  "node16, DOM": { ...NODE16, lib: ["dom"], types: [] },
  "node16, DOM, @types/node and @webgpu/types": { ...NODE16, lib: ["dom"], types: ["node", "@webgpu/types"] },
  // Without types of WebAssembly and WebGPU what takes them is not checked.
  "node16, @types/node alone": { ...NODE16, lib: [], types: ["node"], skipLibCheck: true },
};

describe("types", () => {
  it.each(Object.keys(settings))("%s", (name) => {
    const { lib = [], ...rest } = settings[name];
    const options: ts.CompilerOptions = {
      ...rest,
      lib: ["es2022", ...lib].map((one) => `lib.${one}.d.ts`),
      target: ts.ScriptTarget.ES2022,
      strict: true,
      exactOptionalPropertyTypes: true,
      verbatimModuleSyntax: true,
      noEmit: true,
    };
    const host = ts.createCompilerHost(options);
    host.getCurrentDirectory = () => root;
    const program = ts.createProgram([join(root, "consumer.ts")], options, host);
    // Declarations of others are theirs to get right.
    const ours = program.getSourceFiles().filter(({ fileName }) => fileName.startsWith(root));
    expect(ours.length).toBeGreaterThan(10);
    const found = [
      ...program.getOptionsDiagnostics(),
      ...program.getGlobalDiagnostics(),
      ...ours.flatMap((file) => [
        ...program.getSyntacticDiagnostics(file),
        ...program.getSemanticDiagnostics(file),
      ]),
    ];
    const format = { ...host, getCanonicalFileName: (file: string) => file };
    expect(ts.formatDiagnostics(found, format)).toBe("");
  });
});
