"use strict";

// Login and the explorer: what an operator can do on the status page, and what a page of another site cannot do.

const assert = require("node:assert/strict");
const { execFile } = require("node:child_process");
const { createHash } = require("node:crypto");
const http = require("node:http");
const { after, afterEach, before, test } = require("node:test");
const { promisify } = require("node:util");

const { fetchJson, waitFor } = require("../sdk/node/stack.cjs");
const { PATHS, Session, query, says, screenshot, text, violations } = require("./browser.cjs");

const run = promisify(execFile);
const hash = (token) => createHash("sha256").update(token).digest("hex");
const ADMIN_TOKEN = "igw_admin-token-of-the-tests";
const TEAM_TOKEN = "igw_team-token-of-the-tests";

const TEAMS = `
[admin]
token_sha256 = "${hash(ADMIN_TOKEN)}"
[teams.dashboards]
account = "main"
token_sha256 = ["${hash(TEAM_TOKEN)}"]
[teams.care]
account = "main"
token_sha256 = ["${hash("other")}"]
policy = { deny = ["Conversation.ParticipantId"] }
`;

let session;

before(async () => {
  session = await Session.launch();
});
after(() => session?.close());
afterEach(() => session.closeOpen());

async function logIn(page, token) {
  await page.getByLabel("Admin token").fill(token);
  await page.getByRole("button", { name: "Log in" }).click();
}

const authorized = { headers: { Authorization: `Bearer ${ADMIN_TOKEN}` } };
const status = (stack) => fetchJson(`${stack.admin}/status`, authorized);

test("a person logs in, looks, drops a page and logs out", async () => {
  const stack = await session.start({ moreConfig: TEAMS });
  await query(stack, "Conversation.ConversationStatus", { token: TEAM_TOKEN });
  const { page, complaints } = await session.visit(stack);
  await page.waitForURL(`${stack.admin}/login`);
  assert.deepEqual(await violations(page), []);
  await screenshot(page, "login");
  await logIn(page, "igw_wrong");
  await says(page, "[role=alert]", "not the admin token");
  assert.deepEqual(complaints.splice(0).filter((complaint) => !complaint.includes("401")), []);
  await logIn(page, ADMIN_TOKEN);
  await says(page, "[data-ig=state]", "OK: everything works");
  assert.equal(await page.evaluate(() => document.cookie), "", "no script can read the session");
  await says(page, "#team-rows", /dashboards\s+main\s+1\s+1/);
  await page.getByRole("button", { name: "Drop all pages …" }).click();
  await page.getByRole("button", { name: "Drop all", exact: true }).click();
  await waitFor(async () => (await status(stack)).cache.entries === 0, "the pages to be dropped");
  await page.getByRole("button", { name: "Log out" }).click();
  await page.waitForURL(`${stack.admin}/login`);
  await page.goto(stack.admin);
  await page.waitForURL(`${stack.admin}/login`);
  assert.deepEqual(complaints, []);
});

test("a query is put together, priced, run as the team and paged through", async () => {
  const stack = await session.start({ rate: "20/s", moreConfig: TEAMS });
  const { page, complaints } = await session.visit(stack);
  await logIn(page, ADMIN_TOKEN);
  await says(page, "#metadata-note", "costs one call");
  await page.locator("[data-ig=team]").selectOption("dashboards");
  await says(page, "#metadata-note", "dimensions");
  await page.locator("[data-ig=measure]").selectOption("Conversation.Count");
  await page.locator("[data-ig=dimension]").selectOption("Conversation.CreatedDate");
  await page.locator("[data-ig=grain]").selectOption("day");
  await page.locator("[data-ig=filter]").selectOption("Conversation.ConversationStatus");
  await page.locator("[data-ig=value]").fill("CLOSED");
  await page.locator("[data-ig=order]").selectOption("Conversation.CreatedDate.day");
  await page.locator("[data-ig=direction]").selectOption("ASC");
  await page.locator("[data-ig=zone]").fill("Europe/Zurich");
  await page.getByLabel("Rows on a page").fill("5");
  await says(page, "[data-ig=cost]", /one call to Twilio.+\d+ calls left now/);
  await page.locator("[data-ig=run]").click();
  await says(page, "#answer-words", /Answered by Twilio, because nothing was stored.+It took .+ Request id /);
  assert.equal(await page.locator("[data-ig=rows] tbody tr").count(), 5);
  assert.ok(await page.locator("[data-ig=chart] svg").isVisible());
  await says(page, "[data-ig=cost]", "nothing: a fresh answer is stored");
  const first = await text(page, "[data-ig=rows] tbody");
  await page.getByRole("button", { name: "Next page" }).click();
  await says(page, "#page-number", "Page 2");
  assert.notEqual(await text(page, "[data-ig=rows] tbody"), first);
  await page.getByRole("button", { name: "Previous page" }).click();
  await says(page, "#page-number", "Page 1");
  assert.equal(await text(page, "[data-ig=rows] tbody"), first);
  await says(page, "#answer-words", "Answered from the cache");
  await says(page, "#live-rows", "dashboards, by the explorer");
  assert.deepEqual(await violations(page), []);
  await screenshot(page, "explorer");

  await page.locator("[data-ig=team]").selectOption("care");
  await says(page, "#metadata-note", "dimensions");
  const offered = await page.locator("[data-ig=dimension] option").allTextContents();
  assert.ok(offered.includes("Conversation.ParticipantType") && !offered.includes("Conversation.ParticipantId"));
  const { teams } = await status(stack);
  assert.ok(teams.find(({ name }) => name === "dashboards").asked.hit > 0, "it counts as the team's");
  assert.deepEqual(complaints, []);
});

test("each snippet runs when it is pasted, whatever characters the query has", async () => {
  const stack = await session.start({ moreConfig: TEAMS });
  const { page, complaints } = await session.visit(stack);
  await logIn(page, ADMIN_TOKEN);
  await says(page, "[data-ig=state]", "OK: everything works");
  await page.getByRole("button", { name: "Read the metadata" }).click();
  await says(page, "#metadata-note", "dimensions");
  const environment = { PATH: process.env.PATH, NO_PROXY: "127.0.0.1", INSIGHTS_GATEWAY_TOKEN: TEAM_TOKEN };
  const commands = {
    curl: (snippet) => ["bash", ["-c", snippet]],
    Python: (snippet) => ["python3", ["-c", snippet]],
    Node: (snippet) => ["node", ["-e", snippet]],
    "insights-gateway": (snippet) => ["bash", ["-c", `insights-gateway() { "${process.env.GATEWAY_BINARY}" "$@"; }\n${snippet}`]],
  };
  for (const [operator, value, expected] of [
    ["IN", "CLOSED, ACTIVE", /CLOSED/],
    ["NE", `it's "$HOME" \`id\` \\n, é`, /CLOSED/],
    ["EQ", `'; touch /tmp/never #`, null],
  ]) {
    await page.locator("[data-ig=team]").selectOption("dashboards");
    await says(page, "#metadata-note", "dimensions");
    await page.locator("[data-ig=dimension]").selectOption("Conversation.ConversationStatus");
    await page.locator("[data-ig=filter]").selectOption("Conversation.ConversationStatus");
    await page.locator("[data-ig=operator]").selectOption(operator);
    await page.locator("[data-ig=value]").fill(value);
    await page.locator("[data-ig=run]").click();
    await says(page, "#answer-words", "Answered by Twilio");
    const before = (await stack.received()).length;
    for (const [language, command] of Object.entries(commands)) {
      const snippet = await page.locator(`[data-ig=snippet][data-language="${language}"]`).textContent();
      assert.ok(!snippet.includes(TEAM_TOKEN) && !snippet.includes(ADMIN_TOKEN));
      const [file, args] = command(snippet);
      const { stdout } = await run(file, args, { env: environment, timeout: 20_000 });
      if (expected) assert.match(stdout, expected, `${language}: ${snippet}`);
    }
    assert.equal((await stack.received()).length, before, "each asks exactly the same, so all were hits");
    await page.reload();
    await says(page, "#metadata-note", "dimensions");
  }
  assert.deepEqual(complaints, []);
});

test("the explorer works with the keyboard only", async () => {
  const stack = await session.start();
  await fetchJson(`${stack.url}${PATHS}/Metadata`);
  const { page } = await session.visit(stack);
  await says(page, "#metadata-note", "dimensions");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.locator("[data-ig=dimension]").focus();
  await page.keyboard.type("Conversation.ConversationS");
  await page.keyboard.press("Tab");
  await page.locator("[data-ig=zone]").focus();
  await page.keyboard.press("Enter");
  await says(page, "[data-ig=rows]", "CLOSED");
  const tabs = page.getByRole("tab");
  await tabs.first().focus();
  await page.keyboard.press("ArrowRight");
  assert.equal(await page.getByRole("tab", { selected: true }).innerText(), "Python");
  assert.ok(await page.locator("[data-ig=snippet][data-language=Python]").isVisible());
});

/** A page of another site that sends forms and requests by script as soon as it is loaded. */
async function elsewhere(admin) {
  const html = `<!doctype html><iframe name="hidden"></iframe><iframe id="framed" src="${admin}/"></iframe>
    <form id="f" target="hidden" method="post" enctype="text/plain" action="${admin}/cache/purge"><input name='{"all":true,"x":"' value='"}'></form>
    <script>
      const options = { method: "POST", mode: "no-cors", credentials: "include", body: '{"all":true}' };
      f.submit();
      Promise.allSettled([fetch("${admin}/cache/purge", options), fetch("${admin}/logout", options), fetch("${admin}/status", { mode: "no-cors", credentials: "include" })])
        .then(() => setTimeout(() => { document.title = "tried"; }, 500));
    </script>`;
  const server = http.createServer((_, answer) => answer.setHeader("Content-Type", "text/html").end(html));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://localhost:${server.address().port}/`, close: () => server.close() };
}

for (const [name, moreConfig] of [["with a token", TEAMS], ["without a token", ""]]) {
  test(`another site's page drops nothing, logs nobody out and frames nothing, ${name}`, async () => {
    const stack = await session.start({ moreConfig });
    await query(stack, "Conversation.ConversationStatus", { token: moreConfig ? TEAM_TOKEN : undefined });
    const { page } = await session.visit(stack);
    if (moreConfig) await logIn(page, ADMIN_TOKEN);
    await says(page, "[data-ig=state]", "OK: everything works");
    const other = session.closing(await elsewhere(stack.admin));
    const evil = await page.context().newPage();
    await evil.goto(other.url);
    await evil.waitForFunction(() => document.title === "tried");
    const frame = await (await evil.$("#framed")).contentFrame();
    assert.equal(await frame.locator("[data-ig=state]").count(), 0, "it is not framed");
    assert.equal((await status(stack)).cache.entries, 1);
    await page.reload();
    await says(page, "[data-ig=state]", "OK: everything works");
  });
}
