"use strict";

// The status page in a real browser, with a gateway that has traffic and faults.

const assert = require("node:assert/strict");
const { after, afterEach, before, test } = require("node:test");

const { ACCOUNT_SID, fetchJson, waitFor } = require("../sdk/node/stack.cjs");
const { PATHS, Session, query, says, screenshot, someTraffic, text, violations } = require("./browser.cjs");

const TEAM = `
[teams.dashboards]
account = "main"
token_sha256 = ["${"0".repeat(64)}"]
requests = "200/s"
weight = 3
operations = ["metadata", "query"]
`;

let session;

before(async () => {
  session = await Session.launch();
});
after(() => session?.close());
afterEach(() => session.closeOpen());

test("the page shows the state of the gateway and its changes", async () => {
  const stack = await session.start({ rate: "1200/min" });
  const { page, complaints } = await session.visit(stack);
  await says(page, "[data-ig=state]", "OK: everything works");
  const { version } = await fetchJson(`${stack.admin}/status`);
  assert.ok((await text(page, "#about")).includes(version));
  assert.match(await text(page, "#account-cards"), new RegExp(`main\\s+${ACCOUNT_SID}`));
  assert.match(await text(page, "#account-cards"), /unknown: nobody has asked Twilio yet|accepted/);
  assert.match(await text(page, "#account-cards"), /Rate now\s+1200\/min\s/, "in the unit of the configuration");
  assert.match(await text(page, "#no-teams"), /local/);
  assert.equal(await page.title(), "insights-gateway");

  await someTraffic(stack);
  await says(page, "#live-rows", "hit");
  await says(page, "#figures", "60.0 %");
  assert.match(await text(page, "#figures"), /6\s+calls to Twilio saved/);
  await says(page, "#cache-pages", "4 pages");
  await says(page, "#chart-requests .legend", "miss");
  await says(page, "#account-cards", "accepted");
  await page.locator("#chart-requests summary").click();
  await page.locator("#chart-requests table").waitFor();
  await page.getByRole("button", { name: "Look again" }).click();
  await says(page, "#entry-rows", "metadata");
  assert.equal(await page.locator("#entry-rows tr").count(), 4);
  await screenshot(page, "status-1200");
  assert.deepEqual(complaints, []);
});

test("an unreachable Twilio is shown with its cause and the runbook entry", async () => {
  const stack = await session.start({ rate: "20/s", moreConfig: "[retry]\nattempts = 1\n[circuit]\nconsecutive = 1\n" });
  await query(stack, "Conversation.ConversationStatus");
  await stack.stopSimulator();
  const { page, complaints } = await session.visit(stack);
  for (const hour of ["hour", "day", "month"]) await query(stack, `Conversation.CreatedDate.${hour}`);
  await says(page, "[data-ig=state]", /Degraded since \d\d:\d\d:\d\d: Twilio fails for main/);
  assert.match(await page.title(), /Degraded/);
  await says(page, "#findings", /Twilio fails for main/);
  await says(page, "#error-rows", "upstream unreachable");
  await says(page, "#error-rows", /502: .+/);
  await screenshot(page, "status-down");
  assert.deepEqual(await violations(page), []);
  await page.getByRole("link", { name: /^Runbook: / }).first().click();
  await page.waitForURL(/\/runbook#\w+/);
  const heading = new URL(page.url()).hash.slice(1);
  assert.equal(await page.locator(`[id="${heading}"]`).count(), 1, heading);
  assert.deepEqual(await violations(page), []);
  assert.deepEqual(complaints, []);
});

test("a store that is gone is shown with its cause, and so is its return", async () => {
  const store = await session.startStore();
  const stack = await session.start({ rate: "20/s", moreConfig: `[shared]\nurl = "unix://${store.socket}"\nreplicas = 1\n` });
  const { page, complaints } = await session.visit(stack);
  await says(page, "[data-ig=state]", "OK: everything works");
  await store.stop();
  // Each looks into the store first, and none fails because of it.
  for (const hour of ["hour", "day", "month"]) assert.ok((await query(stack, `Conversation.CreatedDate.${hour}`)).items);
  await says(page, "[data-ig=state]", /Degraded since \d\d:\d\d:\d\d: the replicas’ store cannot be reached, but the gateway still serves/);
  assert.match(await page.title(), /Degraded/);
  // The cause changes once: from that of the connection that broke to that of the attempts to open a new one.
  const { shared, checks } = await waitFor(async () => {
    const status = await fetchJson(`${stack.admin}/status`);
    return (await text(page, "#findings")).toLowerCase().includes(status.shared.cause.toLowerCase()) && status;
  }, "the cause to be shown");
  assert.equal(shared.state, "degraded");
  const shown = await text(page, "#findings");
  assert.match(shown, /since \d\d:\d\d:\d\d/);
  assert.match(shown, /shares again by itself when the store answers/);
  const [, heading] = checks.find(({ check }) => check.startsWith("shared")).runbook.split("#");
  await screenshot(page, "status-store");
  assert.deepEqual(await violations(page), []);
  await page.getByRole("link", { name: /^Runbook: The replicas’ store/ }).click();
  await page.waitForURL(`${stack.admin}/runbook#${heading}`);
  assert.equal(await page.locator(`[id="${heading}"]`).count(), 1);
  await page.goBack();
  await says(page, "[data-ig=state]", "Degraded");
  await store.start();
  await says(page, "[data-ig=state]", "OK: everything works");
  assert.equal(await page.locator("#findings li").count(), 0);
  assert.equal(await page.title(), "insights-gateway");
  assert.deepEqual(complaints, []);
});

test("rejected credentials and a pause are shown", async () => {
  const stack = await session.start({ rate: "20/s" });
  await stack.script({ next: 1, status: 403 });
  await query(stack, "Conversation.ConversationStatus");
  await stack.script({ next: 1, status: 429, headers: { "x-ratelimit-reset": "120" } });
  await fetchJson(`${stack.url}${PATHS}/Metadata`, { headers: { Prefer: "wait=1" } });
  const { page, complaints } = await session.visit(stack);
  await says(page, "[data-ig=state]", /Failing since \d\d:\d\d:\d\d: Twilio rejects the credentials of main/);
  assert.match(await page.title(), /Failing/);
  assert.match(await text(page, "#account-cards"), /paused by Twilio’s limit, 1\d\d s left/);
  assert.match(await text(page, "#account-cards"), /rejected with 403 for \d+ s/);
  await says(page, "#findings", "Cause: status: 403");
  await says(page, "#chart-calls .legend", "paused by Twilio’s limit");
  await screenshot(page, "status-rejected");
  assert.deepEqual(await violations(page), []);
  assert.deepEqual(complaints, []);
});

test("teams are listed with their requests and refusals", async () => {
  const stack = await session.start({ moreConfig: TEAM });
  await query(stack, "Conversation.ConversationStatus", { token: "unknown" });
  const { page, complaints } = await session.visit(stack);
  await says(page, "#team-rows", /dashboards\s+main\s+0\s+0/);
  assert.match(await text(page, "#team-rows"), /100 %\s+200\/s requests/);
  assert.equal(await page.locator("#no-teams").isVisible(), false);
  assert.match(await text(page, "#account-cards"), /no limit/);
  await says(page, "#error-rows", "unauthenticated");
  assert.equal(await page.locator("#explorer-section").isVisible(), false, "no admin token, so no explorer");
  assert.deepEqual(complaints, []);
});

test("a gateway that does not answer is noticed", async () => {
  const stack = await session.start();
  const { page } = await session.visit(stack);
  await says(page, "[data-ig=state]", "OK: everything works");
  await stack.stopGateway();
  await says(page, "[data-ig=state]", /has not answered since \d\d:\d\d:\d\d/);
  assert.match(await page.title(), /Silent/);
  assert.ok(await page.locator("main").isVisible(), "what was known stays");
});

test("stored pages are searched, sorted and, after confirmation, dropped", async () => {
  const stack = await session.start();
  await someTraffic(stack);
  const { page, complaints } = await session.visit(stack);
  await page.locator("#entry-rows tr").nth(3).waitFor();
  await page.getByRole("button", { name: "Size" }).click();
  assert.equal(await page.locator("#entries-head [aria-sort]").getAttribute("aria-sort"), "descending");
  const largest = await page.locator("#entry-rows tr").first().innerText();
  await page.getByRole("button", { name: "Size" }).click();
  assert.equal(await page.locator("#entry-rows tr").last().innerText(), largest);
  await page.getByRole("searchbox", { name: "Search" }).fill("metadata");
  await says(page, "#entries-caption", "1 of 4 pages");

  const kept = async () => (await fetchJson(`${stack.admin}/status`)).cache.entries;
  await page.getByRole("button", { name: /^Drop [0-9a-f]{16}$/ }).click();
  await page.getByRole("button", { name: "Keep" }).click();
  assert.equal(await kept(), 4, "nothing is dropped that was not confirmed");
  await page.getByRole("button", { name: /^Drop [0-9a-f]{16}$/ }).click();
  assert.deepEqual(await violations(page), []);
  await page.getByRole("button", { name: "Drop the page" }).click();
  await says(page, "#entries-caption", /0 of 3 pages/);
  await page.getByRole("button", { name: "Drop all pages …" }).click();
  await page.getByRole("button", { name: "Drop all", exact: true }).click();
  await says(page, "#entries-caption", "Nothing is kept yet.");
  assert.equal(await kept(), 0);
  assert.deepEqual(complaints, []);
});

for (const [name, options] of [
  ["light", {}],
  ["dark", { colorScheme: "dark" }],
  ["narrow", { viewport: { width: 390, height: 800 } }],
  ["narrow-dark", { viewport: { width: 390, height: 800 }, colorScheme: "dark" }],
]) {
  test(`the page is accessible: ${name}`, async () => {
    const stack = await session.start({ rate: "20/s" });
    await someTraffic(stack);
    await query(stack, "Conversation.Nothing");
    await fetchJson(`${stack.url}/nowhere`);
    const { page, complaints } = await session.visit(stack, options);
    await says(page, "#error-rows", "not found");
    await says(page, "#metadata-note", "dimensions");
    await page.locator("[data-ig=dimension]").selectOption("Conversation.ConversationStatus");
    await page.locator("[data-ig=run]").click();
    await says(page, "[data-ig=rows]", "CLOSED");
    await says(page, "#chart-requests .legend", "hit");
    assert.deepEqual(await violations(page), []);
    const wide = options.viewport?.width ?? 1200;
    const width = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(width <= wide, `the page is ${width} px wide`);
    await screenshot(page, `status-${name}`);
    assert.deepEqual(complaints, []);
  });
}

test("headings are in order, and tables have captions", async () => {
  const stack = await session.start({ moreConfig: TEAM, rate: "20/s" });
  const { page } = await session.visit(stack);
  await says(page, "[data-ig=state]", "OK: everything works");
  const levels = await page.locator("h1, h2, h3").evaluateAll((all) => all.map((one) => Number(one.tagName[1])));
  assert.equal(levels.filter((level) => level === 1).length, 1);
  levels.reduce((above, level) => {
    assert.ok(level <= above + 1, `headings skip a level: ${levels}`);
    return level;
  });
  const tables = page.locator("table");
  for (let at = 0; at < (await tables.count()); at += 1) {
    assert.notEqual(await tables.nth(at).locator("caption").count(), 0);
    assert.equal(await tables.nth(at).locator("thead th:not([scope=col])").count(), 0);
  }
  assert.ok(await page.getByRole("status").first().isVisible());
  assert.ok(await page.getByRole("meter", { name: "Cache fill" }).isVisible());
  assert.ok(await page.getByRole("meter", { name: "Tokens" }).getAttribute("aria-valuetext"));
});
