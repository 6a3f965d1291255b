/** Builds the example's page into build/llama-page: static files, for any path of any host. */
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  publicDir: false,
  build: { outDir: "../../build/llama-page", emptyOutDir: true, assetsInlineLimit: 0 },
  worker: { format: "es" },
});
