/** Browsers for tests, and a web server for what they load. */
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join } from "node:path";
import { type Browser, chromium } from "playwright-core";

/** Where Debian's package puts it; `KVARN_CHROMIUM` names another place. */
const CHROMIUM = process.env.KVARN_CHROMIUM ?? "/usr/bin/chromium";

/** Chromium with WebGPU, quiet on the network; undefined, and named, where there is none, unless `KVARN_REQUIRE` is set. */
export async function openChromium(): Promise<Browser | undefined> {
  if (!existsSync(CHROMIUM)) {
    const message = `chromium is absent (${CHROMIUM}), its tests are left out`;
    if (process.env.KVARN_REQUIRE) throw new Error(message);
    console.warn(message);
    return undefined;
  }
  return chromium.launch({
    executablePath: CHROMIUM,
    args: [
      "--no-sandbox",
      "--enable-unsafe-webgpu",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      "--no-default-browser-check",
      "--no-first-run",
    ],
  });
}

const TYPES: Record<string, string> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".json": "application/json",
  ".map": "application/json",
  ".wasm": "application/wasm",
};

/** Serves the files of a folder on a free port of this machine. */
export async function serve(folder: string): Promise<{ url: string; close: () => Promise<void> }> {
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url ?? "/", "http://localhost");
    readFile(join(folder, pathname.endsWith("/") ? `${pathname}index.html` : pathname)).then(
      (body) => {
        response.setHeader("Content-Type", TYPES[extname(pathname) || ".html"] ?? "application/octet-stream");
        response.end(body);
      },
      () => response.writeHead(404).end(),
    );
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close: () => new Promise((resolve) => server.close(() => resolve())),
  };
}
