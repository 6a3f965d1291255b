/** Builds the demo page into build/demo: static files, for any path of any host. */
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  publicDir: false,
  build: { outDir: "../build/demo", emptyOutDir: true, assetsInlineLimit: 0 },
  worker: { format: "es" },
});
