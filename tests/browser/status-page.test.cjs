"use strict";

// Shows the status page of a gateway with traffic in a real browser.

const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const { after, afterEach, before, test } = require("node:test");

const { chromium } = require("playwright-core");

const { ACCOUNT_SID, PATIENCE_MS, ROWS, Stack, fetchJson } = require("../sdk/node/stack.cjs");

const TEAM = `
[teams.dashboards]
account = "main"
token_sha256 = ["${"0".repeat(64)}"]
requests = "200/s"
weight = 3
operations = ["metadata", "query"]
`;

let browser;
const open = [];

before(async () => {
  const args = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
  // Containers and CI run as root, which cannot use the browser's sandbox.
  if (process.getuid() === 0) args.push("--no-sandbox");
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args });
});

after(() => browser?.close());

afterEach(() => Promise.all(open.splice(0).map((closable) => closable.close())));

async function start(options) {
  const stack = await Stack.start(options);
  open.push(stack);
  return stack;
}

/** The page, and all that it complained about or asked of other hosts. */
async function visit(stack, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 }, ...options });
  open.push(context);
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  const complaints = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    const { protocol, origin } = new URL(request.url());
    if (protocol !== "data:" && origin !== stack.admin) complaints.push(`asked ${request.url()}`);
  });
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      console.error(`the policy forbids ${event.violatedDirective} ${event.blockedURI}`);
    });
  });
  await page.goto(stack.admin);
  await page.locator("main").waitFor();
  return { page, complaints };
}

const PATHS = "/v3/InsightsDomains/Conversations";

async function query(stack, dimension, pageSize = 50) {
  const body = { query: { measures: ["Conversation.Count"], dimensions: [dimension] } };
  const options = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  return fetchJson(`${stack.url}${PATHS}/Query?pageSize=${pageSize}`, options);
}

/** Four misses and six hits, all but the metadata of different sizes. */
async function someTraffic(stack) {
  await fetchJson(`${stack.url}${PATHS}/Metadata`);
  for (let round = 0; round < 3; round += 1) {
    await query(stack, "Conversation.ConversationStatus");
    await query(stack, "Conversation.ConversationId", ROWS);
    await query(stack, "Conversation.CreatedDate.hour");
  }
}

const text = (page, selector) => page.locator(selector).innerText();

/** Waits until an element says so: the page asks every two seconds. */
async function says(page, selector, expected) {
  await page.locator(selector).filter({ hasText: expected }).first().waitFor();
}

async function screenshot(page, name) {
  if (!process.env.SCREENSHOTS) return;
  fs.mkdirSync(process.env.SCREENSHOTS, { recursive: true });
  await page.screenshot({ path: path.join(process.env.SCREENSHOTS, `${name}.png`), fullPage: true });
}

test("the page shows the gateway's state and updates it", async () => {
  const stack = await start({ rate: "20/s" });
  const { page, complaints } = await visit(stack);
  const { version } = await fetchJson(`${stack.admin}/status`);
  assert.ok((await text(page, "header")).includes(version));
  assert.equal(await text(page, "#state"), "Ready");
  assert.match(await text(page, "#checks"), /OK\s+credentials\/main/);
  assert.equal(await text(page, "#ratio"), "–");
  assert.match(await text(page, "#accounts"), new RegExp(`main\\s+${ACCOUNT_SID}`));
  assert.match(await text(page, "#accounts"), /20\/s/);
  assert.match(await text(page, "#no-teams"), /local/);

  await someTraffic(stack);
  await says(page, "#ratio", "60.0 %");
  await says(page, "#traffic", "10 requests");
  await says(page, "#cache-pages", "4 pages");
  assert.match(await text(page, "#outcomes"), /hit\s+6/);
  assert.match(await text(page, "#outcomes"), /miss\s+4/);
  await page.locator("#entries tr").nth(3).waitFor();
  assert.match(await text(page, "#entries"), /metadata/);
  await screenshot(page, "status-1200");

  await page.emulateMedia({ colorScheme: "dark" });
  await screenshot(page, "status-1200-dark");
  assert.deepEqual(complaints, []);
});

test("the page fits a narrow screen", async () => {
  const stack = await start({ rate: "20/s" });
  await someTraffic(stack);
  const { page, complaints } = await visit(stack, { viewport: { width: 400, height: 800 } });
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= 400, `the page is ${width} px wide`);
  await screenshot(page, "status-400");
  assert.deepEqual(complaints, []);
});

test("the page shows a pause, rejected credentials and teams", async () => {
  const stack = await start({ rate: "20/s" });
  await stack.script({ next: 1, status: 401 });
  await query(stack, "Conversation.ConversationStatus");
  await stack.script({ next: 1, status: 429, headers: { "x-ratelimit-reset": "120" } });
  const given = { headers: { Prefer: "wait=1" } };
  await fetchJson(`${stack.url}${PATHS}/Metadata`, given);
  const { page, complaints } = await visit(stack);
  assert.equal(await text(page, "#state"), "Not ready");
  assert.match(await text(page, "#checks"), /Failing\s+credentials\/main/);
  assert.match(await text(page, "#accounts"), /paused, 1\d\d s left/);
  assert.match(await text(page, "#accounts"), /rejected for \d+ s/);
  await screenshot(page, "status-trouble");
  // The browser itself reports that /readyz answers 503.
  assert.deepEqual(complaints.filter((complaint) => !complaint.includes("503")), []);
});

test("teams are listed", async () => {
  const stack = await start({ moreConfig: TEAM });
  const { page, complaints } = await visit(stack);
  assert.match(await text(page, "#teams"), /dashboards\s+main\s+200\/s\s+3\s+metadata, query/);
  assert.equal(await page.locator("#no-teams").isVisible(), false);
  assert.match(await text(page, "#accounts"), /no limit/);
  assert.deepEqual(complaints, []);
});

test("the page shows that the gateway no longer answers", async () => {
  const stack = await start();
  const { page } = await visit(stack);
  await stack.stopGateway();
  await says(page, "#state", /does not answer since \d\d:\d\d:\d\d/);
  assert.ok(await page.locator("main").isVisible(), "the last known state stays visible");
  await screenshot(page, "status-silence");
});

test("the page is accessible to assistive technology", async () => {
  const stack = await start({ moreConfig: TEAM, rate: "20/s" });
  const { page } = await visit(stack);
  const levels = await page.locator("h1, h2, h3").evaluateAll((all) => all.map((one) => Number(one.tagName[1])));
  assert.equal(levels.filter((level) => level === 1).length, 1);
  levels.reduce((above, level) => {
    assert.ok(level <= above + 1, `headings skip a level: ${levels}`);
    return level;
  });
  const tables = page.locator("table");
  for (let at = 0; at < (await tables.count()); at += 1) {
    assert.ok(await tables.nth(at).locator("caption").textContent());
    assert.equal(await tables.nth(at).locator("thead th:not([scope=col])").count(), 0);
  }
  assert.ok(await page.getByRole("status").isVisible());
  assert.ok(await page.getByRole("meter", { name: "Cache fill" }).isVisible());
  assert.ok(await page.getByRole("meter", { name: "Tokens" }).getAttribute("aria-valuetext"));
});
