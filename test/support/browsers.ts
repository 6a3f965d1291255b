/** Browsers that tests drive. One that is not installed is named and left out, unless `KVARN_REQUIRE` is set. */
import type { Browser, Page } from "puppeteer-core";
import {
  type BrowserName,
  type BrowserOptions,
  findBrowser,
  openChromium,
  openFirefox,
} from "./open-browser.js";

export { ISOLATING, openChromium, type Server, serveFolder } from "./open-browser.js";

const OPEN: Record<BrowserName, (options?: BrowserOptions) => Promise<Browser>> = {
  chromium: openChromium,
  firefox: openFirefox,
};

/** The browsers that are here, and how to open them. */
export const browsers = (Object.keys(OPEN) as BrowserName[]).filter(isHere).map((name) => {
  return [name, OPEN[name]] as const;
});

function isHere(name: BrowserName): boolean {
  try {
    findBrowser(name);
    return true;
  } catch (error) {
    if (process.env.KVARN_REQUIRE) throw error;
    console.warn(`its tests are left out: ${(error as Error).message}`);
    return false;
  }
}

/** What a page says from now on: its console, errors that nothing caught, and what it could not load. */
export function listenTo(page: Page): string[] {
  const noise: string[] = [];
  page.on("console", (message) => noise.push(message.text()));
  page.on("pageerror", (error) => noise.push(String(error)));
  page.on("requestfailed", (request) => noise.push(request.url()));
  return noise;
}
