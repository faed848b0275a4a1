"use strict";

// The dashboard of docs/recipes/browser.md: served by a web server, in a real browser, with a gateway whose server.cors
// lists its origin.

const assert = require("node:assert/strict");
const crypto = require("node:crypto");
const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");
const { after, afterEach, before, test } = require("node:test");

const { chromium } = require("playwright-core");

const { PATIENCE_MS, ROWS, Stack } = require("../sdk/node/stack.cjs");

const RECIPE = path.join(__dirname, "../../deploy/recipes/browser");
const TOKEN = "igw_token-of-the-tests";

let browser;
const open = [];

before(async () => {
  const args = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
  // The sandbox does not work as root, the user of containers and CI.
  if (process.getuid() === 0) args.push("--no-sandbox");
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args });
});

after(() => browser?.close());

afterEach(() => Promise.all(open.splice(0).map((closable) => closable.close())));

/** The page on its own web server, and its origin. */
async function serve() {
  const page = fs.readFileSync(path.join(RECIPE, "dashboard.html"));
  const server = http.createServer((_, answer) => answer.setHeader("Content-Type", "text/html").end(page));
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  open.push({ close: () => new Promise((closed) => server.close(closed).closeAllConnections()) });
  return `http://127.0.0.1:${server.address().port}`;
}

/** A gateway with the recipe's configuration, for another origin and token. */
async function start(origin) {
  const hash = crypto.createHash("sha256").update(TOKEN).digest("hex");
  const moreConfig = fs
    .readFileSync(path.join(RECIPE, "gateway.toml"), "utf8")
    .replace("https://dashboards.example", origin)
    .replace(/"0{63}1"/, `"${hash}"`);
  const stack = await Stack.start({ moreConfig });
  open.push(stack);
  return stack;
}

async function visit(origin, stack, token) {
  const context = await browser.newContext();
  open.push(context);
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  await page.goto(`${origin}/?gateway=${stack.url}`);
  await page.getByLabel("Access token").fill(token);
  await page.getByRole("button", { name: "Show" }).click();
  return page;
}

test("a page of a listed origin sends a query, reads the answer and shows the Cache-Status", async () => {
  const origin = await serve();
  const stack = await start(origin);
  const page = await visit(origin, stack, TOKEN);
  await page.getByText("detail=miss").waitFor();
  const counts = await page.locator("#rows td").allTextContents();
  assert.equal(counts.reduce((sum, count) => sum + Number(count), 0), ROWS);
  await page.getByRole("button", { name: "Show" }).click();
  await page.getByText("detail=hit").waitFor();
});

test("an unknown token is refused with a message", async () => {
  const origin = await serve();
  const stack = await start(origin);
  const page = await visit(origin, stack, "igw_nobody");
  await page.getByText(/^401 /).waitFor();
});

test("a page of another origin reads nothing", async () => {
  const origin = await serve();
  const stack = await start("https://elsewhere.example");
  const page = await visit(origin, stack, TOKEN);
  await page.getByText("Failed to fetch").waitFor();
  assert.equal(await page.locator("#rows td").count(), 0);
});
