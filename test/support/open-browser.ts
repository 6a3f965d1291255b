/**
 * Headless browsers, Chromium through its own protocol, Firefox through WebDriver BiDi, and a server for pages. Both get GPUs
 * of software where Debian has put them.
 */
import { existsSync, readdirSync } from "node:fs";
import { type Browser, launch } from "puppeteer-core";
import { preview } from "vite";

export type BrowserName = "chromium" | "firefox";

const PATHS: Record<BrowserName, readonly string[]> = {
  chromium: ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"],
  firefox: ["/usr/bin/firefox-esr", "/usr/bin/firefox"],
};

/** Vulkan drivers that compute on the CPU. Dawn refuses Mesa's lavapipe, and SwiftShader comes with Chromium. */
const SWIFTSHADER = "/usr/lib/chromium/vk_swiftshader_icd.json";
const MESA_DRIVERS = "/usr/share/vulkan/icd.d";

/** Milliseconds that a page's answer may take; how long a test may, the test says. */
const PATIENCE = 600_000;

/** Nothing but what a test asks for is to go over the network. */
const CHROMIUM_ARGUMENTS = [
  "--no-sandbox", // Needed as root, and where the kernel allows no user namespaces.
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-domain-reliability",
  "--disable-sync",
  "--no-default-browser-check",
  "--no-first-run",
  "--no-pings",
];

/** What a browser is to be opened with. */
export interface BrowserOptions {
  /** Whether pages see the dark colour scheme; default: the light one. */
  dark?: boolean;
  /** Whether pages get WebGPU; default true. */
  gpu?: boolean;
}

export async function openChromium({ dark = false, gpu = true }: BrowserOptions = {}): Promise<Browser> {
  return launch({
    protocolTimeout: PATIENCE,
    executablePath: findBrowser("chromium"),
    args: [
      ...CHROMIUM_ARGUMENTS,
      gpu ? "--enable-unsafe-webgpu" : "--disable-features=WebGPU",
      `--blink-settings=preferredColorScheme=${dark ? 0 : 1}`,
    ],
    env: withDriver(SWIFTSHADER),
  });
}

export async function openFirefox({ dark = false, gpu = true }: BrowserOptions = {}): Promise<Browser> {
  const drivers = existsSync(MESA_DRIVERS) ? readdirSync(MESA_DRIVERS) : [];
  const lavapipe = drivers.find((name) => name.startsWith("lvp_icd"));
  return launch({
    protocolTimeout: PATIENCE,
    browser: "firefox",
    executablePath: findBrowser("firefox"),
    extraPrefsFirefox: {
      "dom.webgpu.enabled": gpu,
      "gfx.webgpu.ignore-blocklist": true,
      // 0 is dark, 1 light.
      "layout.css.prefers-color-scheme.content-override": dark ? 0 : 1,
    },
    env: withDriver(`${MESA_DRIVERS}/${lavapipe}`),
  });
}

/** Where a browser is. Throws where it is not. */
export function findBrowser(name: BrowserName): string {
  const path = PATHS[name].find((candidate) => existsSync(candidate));
  if (path === undefined) throw new Error(`${name} is absent: there is none of ${PATHS[name].join(", ")}`);
  return path;
}

function withDriver(driver: string): NodeJS.ProcessEnv {
  return existsSync(driver) ? { ...process.env, VK_ICD_FILENAMES: driver } : process.env;
}

/** A folder on an address of its own. */
export interface Server {
  /** Ends in a slash. */
  readonly url: string;
  close(): Promise<void>;
}

/** With these a page is cross-origin isolated, and has shared memory. */
export const ISOLATING = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

/** Serves the files of a folder on a free port. */
export async function serveFolder(folder: string, headers: Record<string, string> = {}): Promise<Server> {
  const server = await preview({
    configFile: false,
    appType: "mpa",
    logLevel: "error",
    build: { outDir: folder },
    preview: { host: "127.0.0.1", port: 0, headers },
  });
  return { url: server.resolvedUrls!.local[0], close: () => server.close() };
}
