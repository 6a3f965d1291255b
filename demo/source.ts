/** Where a dump comes from: a file that is dropped or chosen, or the one that comes with the page. */
import { byId } from "./dom.js";

/** SmolLM2-135M-Instruct: four layers, 2,304 tokens. */
const FIXTURE = new URL("../fixtures/smollm2-135m.kv.safetensors", import.meta.url).href;
export const FIXTURE_NAME = "SmolLM2-135M-Instruct";

/** A dump to open: a file, or an address; and what to call it. */
export interface Source {
  readonly data: File | string;
  readonly name: string;
}

/** Calls back for every dump that the user wants open; first of all, the one that comes with the page. */
export function watchSources(onSource: (source: Source) => void): void {
  const zone = byId("drop", HTMLElement);
  const input = byId("file", HTMLInputElement);
  const take = (files: FileList | null | undefined): void => {
    if (files?.length) onSource({ data: files[0], name: files[0].name });
  };
  input.addEventListener("change", () => {
    take(input.files);
    // So that the same file can be chosen again.
    input.value = "";
  });
  // Anywhere on the page, because the browser would leave it for a file that misses the zone.
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) zone.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    take(event.dataTransfer?.files);
  });
  const fixture = (): void => onSource({ data: FIXTURE, name: FIXTURE_NAME });
  byId("fixture", HTMLButtonElement).addEventListener("click", fixture);
  fixture();
}
