// Makes the pictures of the demo page that the README shows, in docs/images, with Chromium:
//   npm run build && npm run build:demo && node scripts/screenshots.mjs
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PNG } from "pngjs";
import { runnerImport } from "vite";

const FOLDER = "docs/images";
const pictures = [
  { name: "demo-light.png", dark: false, viewport: { width: 1040, height: 1080 }, from: "body" },
  { name: "demo-dark-phone.png", dark: true, viewport: { width: 360, height: 900 }, from: "#stages-title" },
];

const { module } = await runnerImport("./test/support/browsers.ts");
mkdirSync(FOLDER, { recursive: true });
const server = await module.serveFolder("build/demo");
try {
  for (const { name, dark, viewport, from } of pictures) {
    const browser = await module.openChromium({ dark });
    try {
      const page = await browser.newPage();
      await page.setViewport(viewport);
      await page.goto(server.url);
      await page.waitForSelector("#attention-figures dd");
      await page.$eval(from, (element) => element.scrollIntoView());
      writeFileSync(join(FOLDER, name), compress(await page.screenshot()));
    } finally {
      await browser.close();
    }
  }
} finally {
  await server.close();
}

/** Cells of heat maps repeat from line to line, which is lost on the filters that browsers apply. */
function compress(png) {
  const options = { colorType: 2, filterType: 0, deflateLevel: 9, deflateStrategy: 0 };
  return PNG.sync.write(PNG.sync.read(Buffer.from(png)), options);
}
