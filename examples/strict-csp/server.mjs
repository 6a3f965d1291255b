// Serves a page under a strict content security policy: `node examples/strict-csp/server.mjs` prints its address.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";

// #region policy
const POLICY = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join("; ");
// #endregion

const TYPES = { html: "text/html; charset=utf-8", js: "text/javascript" };
const dist = new URL(".", import.meta.resolve("kvarn"));

/** The page's own files, and below /kvarn/ the package's. */
function find(path) {
  if (path === "/") return new URL("index.html", import.meta.url);
  if (path.startsWith("/kvarn/")) return new URL(`.${path.slice("/kvarn".length)}`, dist);
  return new URL(`.${path}`, import.meta.url);
}

async function answer(path, response) {
  const file = find(path);
  const type = TYPES[file.pathname.split(".").at(-1)];
  try {
    if (!type) throw new Error("not of this page");
    const body = await readFile(file);
    response.writeHead(200, { "Content-Security-Policy": POLICY, "Content-Type": type }).end(body);
  } catch {
    response.writeHead(404).end();
  }
}

const server = createServer(({ url }, response) => void answer(url, response));
server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));
