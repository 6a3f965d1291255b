/** The example programs, and the parts of them that documents quote. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const ROOT = "examples";

/** All files of the examples: names from `examples/` on. */
export const exampleFiles = readdirSync(ROOT, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile() && !entry.parentPath.includes("node_modules"))
  .map(({ parentPath, name }) => join(parentPath, name).slice(ROOT.length + 1))
  .toSorted();

/** Text that documents may quote: whole files, and what stands between `// #region` and `// #endregion`. */
export function quotableTexts(): string[] {
  return exampleFiles.flatMap((name) => {
    const text = readFileSync(join(ROOT, name), "utf8");
    const regions = text.matchAll(/^\/\/ #region \w+\n([\s\S]*?)^\/\/ #endregion\n/gm);
    return [text, ...[...regions].map(([, region]) => region)];
  });
}
