/**
 * Files of the repository, wherever the benchmarks run: from its root in Node, Deno and Bun, and in a page from the server
 * that `browser.ts` starts.
 */

/** Whether this is a page. */
export const inPage = typeof document !== "undefined";

/** Reads a text file. @param path from the repository's root */
export async function readText(path: string): Promise<string> {
  if (!inPage) return (await import("node:fs/promises")).readFile(path, "utf8");
  const response = await fetch(new URL(path, document.baseURI));
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.text();
}

/** Imports a module. @param path from the repository's root */
export async function importFile<T>(path: string): Promise<T> {
  const url = inPage
    ? new URL(path, document.baseURI).href
    : (await import("node:url")).pathToFileURL(path).href;
  return (await import(url)) as T;
}
