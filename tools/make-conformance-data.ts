/** `npm run conformance:data`: writes `conformance/data/derived.*`. */
import { writeFileSync } from "node:fs";
import { makeDerivedFiles } from "./conformance-data.js";

const { json, bin } = await makeDerivedFiles();
writeFileSync("conformance/data/derived.json", json);
writeFileSync("conformance/data/derived.bin", bin);
