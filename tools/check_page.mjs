// Looks at a report.html in headless Chromium: time to load, axe-core, errors, and screenshots in three settings.
//   npm install puppeteer-core axe-core
//   node tools/check_page.mjs runs/demo/report.html pictures      (CHROMIUM=/path/to/chromium if it is elsewhere)
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [, , page, pictures] = process.argv;
if (pictures) mkdirSync(pictures, { recursive: true });
const require = createRequire(join(process.cwd(), "package.json"));
const puppeteer = require("puppeteer-core");
const axe = readFileSync(require.resolve("axe-core"), "utf8");
const LOOKS = [
  { name: "light", scheme: "light", width: 1200, height: 1000 },
  { name: "dark", scheme: "dark", width: 1200, height: 1000 },
  { name: "narrow", scheme: "light", width: 390, height: 844 },
];

const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu"],
});
let failed = false;
for (const look of LOOKS) {
  const tab = await browser.newPage();
  const said = [];
  tab.on("console", (message) => said.push(message.text()));
  tab.on("pageerror", (error) => said.push(String(error)));
  tab.on("request", (request) => request.url().startsWith("file:") || said.push(`asks for ${request.url()}`));
  tab.on("dialog", (dialog) => { said.push("a dialog opened"); dialog.dismiss(); });
  await tab.setViewport({ width: look.width, height: look.height });
  await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: look.scheme }]);
  const started = performance.now();
  await tab.goto(pathToFileURL(resolve(page)).href, { waitUntil: "load" });
  await tab.waitForSelector("body[data-ready]", { timeout: 20000 });
  const loaded = performance.now() - started;
  const rows = await tab.$eval("#found", (one) => one.textContent);
  if (pictures) await tab.screenshot({ path: join(pictures, `${look.name}.png`), fullPage: false });
  await tab.click("#list button.row");
  await tab.evaluate(axe);
  const { violations } = await tab.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const serious = violations.filter((one) => ["serious", "critical"].includes(one.impact));
  const wide = await tab.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  if (pictures) await tab.screenshot({ path: join(pictures, `${look.name}-whole.png`), fullPage: true });
  if (pictures) {
    await tab.$eval("#rows", (one) => one.scrollIntoView({ behavior: "instant" }));
    await tab.screenshot({ path: join(pictures, `${look.name}-rows.png`) });
  }
  console.log(`${look.name}: ${rows}; ready after ${loaded.toFixed(0)} ms; ${violations.length} axe findings, ` +
    `${serious.length} serious${wide ? "; SCROLLS SIDEWAYS" : ""}`);
  for (const one of violations) console.log(`  ${one.impact} ${one.id}: ${one.help}: ${one.nodes.slice(0, 3).map((node) => node.target).join(" | ")}`);
  for (const line of said) console.log(`  said: ${line}`);
  failed ||= serious.length > 0 || said.length > 0 || wide || loaded > 2000;
  await tab.close();
}
await browser.close();
process.exit(failed ? 1 : 0);
