"use strict";

// Shared by the tests of the status page: a real browser, and checks that hold on every page.

const { spawn } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const { chromium } = require("playwright-core");

const { PATIENCE_MS, ROWS, Stack, fetchJson, stop, waitFor } = require("../sdk/node/stack.cjs");

const PATHS = "/v3/InsightsDomains/Conversations";
const AXE = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

/** A Redis on a unix socket, for replicas to share. */
class Store {
  #folder = fs.mkdtempSync(path.join(os.tmpdir(), "insights-gateway-store-"));
  #process = null;
  socket = path.join(this.#folder, "store.sock");

  /** Starts it, empty, as at first or after `stop`. */
  async start() {
    const args = ["--port", "0", "--unixsocket", this.socket, "--dir", this.#folder, "--save", "", "--appendonly", "no"];
    this.#process = spawn("redis-server", args, { stdio: "ignore" });
    await waitFor(() => fs.existsSync(this.socket), "the store's socket");
  }

  async stop() {
    await stop(this.#process);
  }

  async close() {
    await this.stop();
    fs.rmSync(this.#folder, { recursive: true, force: true });
  }
}

/** Browsers, pages and gateways that are closed together. */
class Session {
  #open = [];

  static async launch() {
    const session = new Session();
    const args = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
    // The sandbox does not work as root, the user of containers and CI.
    if (process.getuid() === 0) args.push("--no-sandbox");
    session.browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args });
    return session;
  }

  closing(closable) {
    this.#open.push(closable);
    return closable;
  }

  async start(options) {
    return this.closing(await Stack.start(options));
  }

  async startStore() {
    const store = this.closing(new Store());
    await store.start();
    return store;
  }

  /** A page, with all its errors and its requests to other hosts. */
  async visit(stack, options = {}) {
    const { path: place = "/", ...rest } = options;
    const context = this.closing(await this.browser.newContext({ viewport: { width: 1200, height: 900 }, ...rest }));
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
    await page.goto(`${stack.admin}${place}`);
    return { page, complaints };
  }

  async closeOpen() {
    await Promise.all(this.#open.splice(0).map((closable) => closable.close()));
  }

  async close() {
    await this.browser?.close();
  }
}

/** Sends a query, and returns its answer, also an error. */
async function query(stack, dimension, { pageSize = 50, token, headers = {} } = {}) {
  const body = { query: { measures: ["Conversation.Count"], dimensions: [dimension] } };
  const authorization = token ? { Authorization: `Bearer ${token}` } : {};
  const all = { "Content-Type": "application/json", ...authorization, ...headers };
  return fetchJson(`${stack.url}${PATHS}/Query?pageSize=${pageSize}`, { method: "POST", body: JSON.stringify(body), headers: all });
}

/** Causes four misses and six hits. All pages except metadata have different sizes. */
async function someTraffic(stack) {
  await fetchJson(`${stack.url}${PATHS}/Metadata`);
  for (let round = 0; round < 3; round += 1) {
    await query(stack, "Conversation.ConversationStatus");
    await query(stack, "Conversation.ConversationId", { pageSize: ROWS });
    await query(stack, "Conversation.CreatedDate.hour");
  }
}

const text = (page, selector) => page.locator(selector).innerText();

/** Waits until the visible text of an element matches. */
async function says(page, selector, expected) {
  const matches = (shown) => (typeof expected === "string" ? shown.includes(expected) : expected.test(shown));
  let last = "";
  const look = async () => {
    const found = page.locator(selector).first();
    last = (await found.count()) ? await found.innerText() : "";
    return matches(last);
  };
  await waitFor(look, `${selector} to say ${expected}`).catch((error) => {
    throw new Error(`${error.message}; it says ${JSON.stringify(last)}`);
  });
}

async function screenshot(page, name) {
  if (!process.env.SCREENSHOTS) return;
  fs.mkdirSync(process.env.SCREENSHOTS, { recursive: true });
  await page.screenshot({ path: path.join(process.env.SCREENSHOTS, `${name}.png`), fullPage: true });
}

/** The faults that axe-core finds, each with its place. */
async function violations(page) {
  // Through the debugger, which the page's policy does not restrict.
  await page.evaluate(AXE);
  const { violations: found } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  return found.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).slice(0, 3).join(" | ")}`);
}

module.exports = { PATHS, Session, query, says, screenshot, someTraffic, text, violations };
