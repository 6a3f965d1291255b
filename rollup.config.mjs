// Bundles the JavaScript that tsc emitted to build/js into dist, next to the .d.ts files that tsc wrote there.
import { chmodSync, copyFileSync, existsSync, readdirSync, readFileSync } from "node:fs";
import { isBuiltin } from "node:module";
import { join } from "node:path";
import commonjs from "@rollup/plugin-commonjs";
import nodeResolve from "@rollup/plugin-node-resolve";

/** Names Node's own modules `node:…`, also where a bundled dependency says `require("events")`. */
const nodeBuiltins = {
  name: "node-builtins",
  resolveId(id) {
    return isBuiltin(id) ? { id: id.startsWith("node:") ? id : `node:${id}`, external: true } : null;
  },
};

/** Chains tsc's source maps into rollup's, so that dist maps to src. */
const inputSourceMaps = {
  name: "input-source-maps",
  load(id) {
    if (!existsSync(`${id}.map`)) return null;
    const code = readFileSync(id, "utf8");
    // The generated modules are one long string each: a map would only carry it a second time.
    const map = /inlined\.js$/.test(id) ? { mappings: "" } : readFileSync(`${id}.map`, "utf8");
    return { code, map };
  },
};

/** Adds the wasm modules, the licenses of what was bundled, and the executable bit of the command. */
const packageFiles = {
  name: "package-files",
  generateBundle(_options, bundle) {
    const roots = new Set();
    for (const file of Object.values(bundle)) {
      for (const id of file.type === "chunk" ? file.moduleIds : []) {
        const root = /^\0?(.*\/node_modules\/(?:@[^/]+\/)?[^/?]+)/.exec(id.replaceAll("\\", "/"))?.[1];
        if (root) roots.add(root);
      }
    }
    const licenses = [...roots].sort().map((root) => {
      const { name, version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
      const file = readdirSync(root).find((entry) => /^licen[cs]e/i.test(entry));
      if (!file) this.error(`${name} is bundled but has no license file`);
      return `${name} ${version}\n\n${readFileSync(join(root, file), "utf8").trim()}\n`;
    });
    const source = licenses.join(`\n${"-".repeat(80)}\n\n`);
    this.emitFile({ type: "asset", fileName: "THIRD-PARTY-LICENSES.txt", source });
  },
  writeBundle({ dir }) {
    for (const name of ["kvarn.wasm", "kvarn-relaxed.wasm"]) copyFileSync(`build/${name}`, join(dir, name));
    chmodSync(join(dir, "cli/main.js"), 0o755);
  },
};

export default {
  input: {
    index: "build/js/index.js",
    "wasm-only": "build/js/wasm-only.js",
    "webgpu-only": "build/js/webgpu-only.js",
    "reference/index": "build/js/reference/index.js",
    "conformance/index": "build/js/conformance/index.js",
    "methods/index": "build/js/methods/index.js",
    "cli/main": "build/js/cli/main.js",
  },
  output: {
    dir: "dist",
    format: "es",
    sourcemap: true,
    entryFileNames: "[name].js",
    chunkFileNames: "chunks/[name].js",
    // Only the command is executable; rollup keeps a shebang that the source has.
    banner: (chunk) =>
      chunk.name === "cli/main" && !hasShebang(chunk.facadeModuleId) ? "#!/usr/bin/env node" : "",
  },
  plugins: [nodeBuiltins, inputSourceMaps, nodeResolve(), commonjs(), packageFiles],
  onwarn(warning) {
    // Above all an unresolved import, which would be a run-time dependency.
    throw new Error(warning.message);
  },
};

function hasShebang(file) {
  return readFileSync(file, "utf8").startsWith("#!");
}
