// A person at the page: a Chromium that does what it is told on standard input, a JSON object a line, and says on standard
// output what it saw.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const PATIENCE = 60_000;

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

let context;
let page;
let told = [];

/** What has the focus, as assistive technology is told it, and whether a person sees that it has. */
const focused = () => page.evaluate(() => {
  const at = document.activeElement;
  if (!at || at === document.body) return null;
  const name = at.labels?.[0]?.innerText || at.getAttribute("aria-label") || at.innerText || "";
  const style = getComputedStyle(at.closest(".sources label") ?? at);
  const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
  return { tag: at.localName, type: at.type ?? "", id: at.id, name: name.replace(/\s+/g, " ").trim(), seen };
});

const deeds = {
  /** A new window, with nothing remembered. */
  async open({ url, width, height, scheme }) {
    await context?.close();
    context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme, reducedMotion: "reduce" });
    context.setDefaultTimeout(PATIENCE);
    page = await context.newPage();
    told = [];
    page.on("console", (line) => told.push(`${line.type()}: ${line.text()}`));
    page.on("pageerror", (error) => told.push(`thrown: ${error.stack}`));
    page.on("dialog", async (dialog) => {
      told.push(`${dialog.type()}: ${dialog.message()}`);
      await dialog.accept();
    });
    await page.goto(url);
  },
  async reload() {
    await page.reload();
  },
  async look({ width, height, scheme }) {
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
  },
  async press({ key }) {
    await page.keyboard.press(key);
  },
  async type({ text }) {
    await page.keyboard.type(text);
  },
  /** Opens the file dialogue with the keyboard and chooses. */
  async choose({ path }) {
    const [dialogue] = await Promise.all([page.waitForEvent("filechooser"), page.keyboard.press("Space")]);
    await dialogue.setFiles(path);
  },
  focused,
  async click({ selector, text }) {
    await page.locator(selector, text ? { hasText: text } : {}).first().click();
  },
  async file({ selector, path }) {
    await page.setInputFiles(selector, path);
  },
  /** Waits until something that is shown has these words. */
  async see({ selector, text }) {
    const place = page.locator(selector, { hasText: text }).filter({ visible: true }).first();
    try {
      await place.waitFor();
    } catch {
      const all = await page.locator(selector).allInnerTexts();
      const jobs = await page.locator(".job").allInnerTexts();
      throw new Error(`no ${selector} with ${JSON.stringify(text)}, only ${JSON.stringify(all)} and jobs ${JSON.stringify(jobs)}; ${told.join("\n")}`);
    }
    return place.innerText();
  },
  async texts({ selector }) {
    return page.locator(selector).filter({ visible: true }).allInnerTexts();
  },
  async evaluate({ expression }) {
    return page.evaluate(expression);
  },
  async violations() {
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    return violations.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => `${id} at ${target}: ${failureSummary}`));
  },
  async shot({ path }) {
    await page.screenshot({ path, fullPage: true });
  },
  told() {
    return told;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { deed, ...how } = JSON.parse(line);
  try {
    console.log(JSON.stringify({ done: (await deeds[deed](how)) ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ failed: `${deed} ${JSON.stringify(how)}: ${error.message}` }));
  }
}
await browser.close();
