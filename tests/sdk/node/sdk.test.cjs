"use strict";

// Sends requests with Twilio's own, unmodified Node SDK through the gateway.

const assert = require("node:assert/strict");
const { execFile } = require("node:child_process");
const { createHash } = require("node:crypto");
const path = require("node:path");
const { afterEach, test } = require("node:test");
const { promisify } = require("node:util");

const twilio = require("twilio");

const { ACCOUNT_KEY, ACCOUNT_SID, PATIENCE_MS, ROWS, Stack } = require("./stack.cjs");

const TOKEN = "igw_a-token-that-only-this-test-knows";
const TEAM = `
[teams.dashboards]
account = "main"
token_sha256 = ["${createHash("sha256").update(TOKEN).digest("hex")}"]
`;

// The application uses these as its credentials. The simulator accepts only the password of its own account, so
// a response proves that the gateway replaced the credentials.
const CALLER = { user: "SKcallers-own-key", password: "callers-own-secret" };

const started = [];

async function start(options) {
  started.push(await Stack.start(options));
  return started.at(-1);
}

afterEach(() => Promise.all(started.splice(0).map((stack) => stack.close())));

/** An SDK client whose only peculiarity is its base URL, the one documented change. */
function clientOf(stack, { user, password } = CALLER) {
  const client = twilio(user, password, { accountSid: ACCOUNT_SID });
  client.insights.baseUrl = stack.url;
  return client;
}

const byStatus = () => ({
  domain: "Conversations",
  query: {
    measures: ["Conversation.Count"],
    dimensions: ["Conversation.ConversationStatus"],
    // The same query as in the Python suite, in another order and with members that its SDK would omit.
    filters: [
      {
        expressions: [{ values: ["CLOSED", "INACTIVE"], field: "Conversation.ConversationStatus", op: "IN" }],
        op: "AND",
      },
    ],
    orderBy: [{ direction: "DESC", field: "Conversation.Count" }],
  },
});

/** As many rows as there are conversations. */
const byConversation = (pageSize) => ({
  domain: "Conversations",
  query: {
    measures: ["Conversation.Count"],
    dimensions: ["Conversation.ConversationId"],
    orderBy: [{ field: "Conversation.ConversationId", direction: "ASC" }],
  },
  pageSize,
});

const ids = (page) => page.items.map((row) => row["Conversation.ConversationId"]);
const cacheStatus = (answer) => answer.headers["cache-status"].split(";").map((word) => word.trim());

/** All pages of the query, first to last. */
async function walk(client, pageSize) {
  const { query } = client.insights.v3;
  const pages = [await query.create(byConversation(pageSize))];
  while (pages.at(-1).meta.nextToken) {
    pages.push(await query.fetch({ pageToken: pages.at(-1).meta.nextToken }));
  }
  return pages;
}

/** Checks what an application would catch. */
async function refused(promise, status, code) {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof twilio.RestException, String(error));
    assert.deepEqual({ status: error.status, code: error.code }, { status, code });
    assert.ok(error.message, "an SDK user sees why");
    return true;
  });
}

test("metadata is fetched and cached", async () => {
  const stack = await start();
  const { metadata } = clientOf(stack).insights.v3;
  const first = await metadata.fetchWithHttpInfo();
  const again = await metadata.fetchWithHttpInfo();
  assert.equal(first.body.domain, "Conversations");
  assert.ok(first.body.cubes.some((cube) => cube.name === "Conversation"));
  assert.deepEqual(again.body.cubes, first.body.cubes);
  assert.ok(cacheStatus(first).includes("fwd=uri-miss"));
  assert.ok(cacheStatus(again).includes("hit"));
  assert.equal((await stack.received()).length, 1);
});

test("a repeated query is a hit", async () => {
  const stack = await start();
  const { query } = clientOf(stack).insights.v3;
  const first = await query.createWithHttpInfo({ ...byStatus(), pageSize: 20 });
  const again = await query.createWithHttpInfo({ ...byStatus(), pageSize: 20 });
  assert.equal(first.body.items.length, 2);
  assert.deepEqual(again.body.items, first.body.items);
  assert.ok(cacheStatus(first).includes("detail=miss"));
  assert.ok(cacheStatus(again).includes("detail=hit"));
  assert.equal(again.headers.etag, first.headers.etag);
  assert.equal((await stack.received()).length, 1);
});

test("pages together hold every row once", async () => {
  const stack = await start();
  const client = clientOf(stack);
  const pages = await walk(client, 50);
  assert.deepEqual(pages.map((page) => page.items.length), [50, 50, 50, 50, 30]);
  const rows = pages.flatMap(ids);
  assert.equal(rows.length, ROWS);
  assert.equal(new Set(rows).size, ROWS);
  assert.deepEqual(rows, [...rows].sort());

  const once = (await stack.received()).length;
  assert.deepEqual((await walk(client, 50)).flatMap(ids), rows);
  assert.equal((await stack.received()).length, once, "the second reading of all pages is answered from the cache");

  const back = await client.insights.v3.query.fetch({ pageToken: pages[1].meta.previousToken });
  assert.deepEqual(ids(back), ids(pages[0]));
});

test("the Python SDK's spelling of a query shares the page", async () => {
  const stack = await start();
  const script = path.join(__dirname, "..", "python", "one_query.py");
  const options = { timeout: PATIENCE_MS };
  const { stdout } = await promisify(execFile)(process.env.TEST_PYTHON, [script, stack.url], options);
  const python = JSON.parse(stdout);
  const node = await clientOf(stack).insights.v3.query.createWithHttpInfo(byStatus());
  assert.match(python.cacheStatus, /detail=miss/);
  assert.ok(cacheStatus(node).includes("detail=hit"));
  assert.deepEqual(node.body.items, python.items);
  assert.equal((await stack.received()).length, 1);
});

test("a time zone is part of the query", async () => {
  const stack = await start();
  const { query } = clientOf(stack).insights.v3;
  const inZone = (timezone) =>
    query.createWithHttpInfo({
      domain: "Conversations",
      properties: { timezone },
      query: {
        measures: ["Conversation.Count"],
        dimensions: ["Conversation.CreatedDate.hour"],
        orderBy: [{ field: "Conversation.CreatedDate.hour", direction: "ASC" }],
      },
      pageSize: 1000,
    });
  // Its offset differs by half an hour, so its hours hold other conversations.
  const kolkata = await inZone("Asia/Kolkata");
  const utc = await inZone("UTC");
  const total = (answer) => answer.body.items.reduce((sum, row) => sum + row["Conversation.Count"], 0);
  assert.equal(total(kolkata), ROWS);
  assert.equal(total(utc), ROWS);
  assert.notDeepEqual(kolkata.body.items, utc.body.items);
  assert.ok(cacheStatus(utc).includes("detail=miss"));
  assert.deepEqual((await inZone("Asia/Kolkata")).body.items, kolkata.body.items);
  assert.equal((await stack.received()).length, 2);
});

test("Twilio's errors arrive unchanged", async () => {
  const stack = await start();
  const unknown = byStatus();
  unknown.query.dimensions = ["Conversation.ShoeSize"];
  await refused(clientOf(stack).insights.v3.query.create(unknown), 400, 20001);
  const [received] = await stack.received();
  assert.equal(received.status, 400);
});

test("the SDK reads the gateway's errors like Twilio's", async () => {
  const stack = await start();
  const { v1, v3 } = clientOf(stack).insights;
  await refused(v3.query.create({ domain: "Conversations" }), 400, 20400);
  await refused(v1.calls(`CA${"0".repeat(32)}`).fetch(), 404, 20404);
  assert.deepEqual(await stack.received(), [], "neither request was sent to Twilio");
});

test("a team over its limit gets a 429", async () => {
  const stack = await start({ moreConfig: `${TEAM}requests = "1/h"\n` });
  const client = clientOf(stack, { user: "dashboards", password: TOKEN });
  await client.insights.v3.metadata.fetch();
  await refused(client.insights.v3.metadata.fetch(), 429, 20429);
  const { headers } = client.httpClient.lastResponse;
  assert.ok(Number(headers["retry-after"]) > 1000, headers["retry-after"]);
});

test("a long wait after Twilio's 429 is refused at once", async () => {
  const stack = await start();
  await stack.script({ next: 1, status: 429, headers: { "x-ratelimit-reset": "120" } });
  const client = clientOf(stack);
  await refused(client.insights.v3.query.create(byStatus(), { Prefer: "wait=1" }), 429, 20429);
  const retryAfter = Number(client.httpClient.lastResponse.headers["retry-after"]);
  assert.ok(retryAfter > 100 && retryAfter <= 120, `${retryAfter}`);
  assert.deepEqual((await stack.received()).map((entry) => entry.status), [429]);
});

test("a temporary failure is retried", async () => {
  const stack = await start();
  await stack.script({ next: 1, status: 503 });
  const page = await clientOf(stack).insights.v3.query.create(byStatus());
  assert.equal(page.items.length, 2);
  assert.deepEqual((await stack.received()).map((entry) => entry.status), [503, 200]);
});

test("a team signs in with its token", async () => {
  const stack = await start({ moreConfig: TEAM });
  const page = await clientOf(stack, { user: "dashboards", password: TOKEN }).insights.v3.query.create(byStatus());
  assert.equal(page.items.length, 2);
  for (const [user, password] of [["dashboards", `${TOKEN}x`], ["exports", TOKEN], ["dashboards", "secret"]]) {
    await refused(clientOf(stack, { user, password }).insights.v3.query.create(byStatus()), 401, 20003);
  }
  assert.equal((await stack.received()).length, 1);
});

test("credentials are not passed between client and Twilio", async () => {
  const stack = await start();
  const client = clientOf(stack);
  await client.insights.v3.metadata.fetch();
  await walk(client, 100);
  const received = await stack.received();
  assert.deepEqual([...new Set(received.map((entry) => entry.authorization.user))], [ACCOUNT_KEY]);
  const noted = JSON.stringify(received);
  assert.ok(!noted.includes(CALLER.user) && !noted.includes(CALLER.password));
  const answered = JSON.stringify(client.httpClient.lastResponse.headers);
  assert.ok(!answered.includes(ACCOUNT_KEY));
});
