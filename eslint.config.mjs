import js from "@eslint/js";
import { defineConfig } from "eslint/config";
import tseslint from "typescript-eslint";

const nodeGlobals = Object.getOwnPropertyNames(globalThis).map((name) => [name, "readonly"]);

export default defineConfig(
  {
    // AssemblyScript is not TypeScript to a linter; asc checks it. The inlined modules are generated. A test compiles
    // the consumer.
    ignores: [
      "assembly/",
      "bench/baseline/",
      "build/",
      "conformance/rust/target/",
      "conformance/rust/web/pkg/",
      "dist/",
      "examples/llama/assembly/",
      "fixtures/",
      "src/**/*inlined.ts",
      "test/packaging/consumer.ts",
    ],
  },
  js.configs.recommended,
  tseslint.configs.recommendedTypeChecked,
  {
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      "@typescript-eslint/consistent-type-imports": "error",
      "@typescript-eslint/no-unused-vars": [
        "error",
        { argsIgnorePattern: "^_", varsIgnorePattern: "^_", ignoreRestSiblings: true },
      ],
      // An engine's methods are async by contract, whether or not this one has to wait.
      "@typescript-eslint/require-await": "off",
      "@typescript-eslint/switch-exhaustiveness-check": [
        "error",
        { considerDefaultExhaustiveForUnions: true },
      ],
      eqeqeq: "error",
    },
  },
  {
    // JavaScript has no types to check against, but a forgotten await is found all the same.
    files: ["**/*.mjs", "**/*.js"],
    languageOptions: { globals: Object.fromEntries(nodeGlobals) },
    rules: {
      ...tseslint.configs.disableTypeChecked.rules,
      "@typescript-eslint/no-floating-promises": "error",
      "@typescript-eslint/no-misused-promises": "error",
    },
  },
);
