"use strict";

// Sends requests with Twilio's own, unmodified Node SDK to the simulator alone, and to a gateway in front of it: query jobs
// and custom fields.

const assert = require("node:assert/strict");
const { createHash } = require("node:crypto");
const { afterEach, test } = require("node:test");
const { setTimeout: sleep } = require("node:timers/promises");

const twilio = require("twilio");
const { ResultListInstance } = require("twilio/lib/rest/insights/v3/result");

const { ACCOUNT_KEY, ACCOUNT_SID, PATIENCE_MS, ROWS, Simulator, Stack } = require("./stack.cjs");

// The id in Twilio's own examples. In the simulator, it is the only operator that writes JSON.
const OPERATOR = "intelligence_operator_01h9d8r0vte3hz8tykdj329t7r";
const KEY = "01890a5d-aa0f-7c80-b8e6-0242ac140004";

const TOKEN = "igw_a-token-that-only-this-test-knows";
const TEAM = `
[teams.all]
account = "main"
token_sha256 = ["${createHash("sha256").update(TOKEN).digest("hex")}"]
operations = ["metadata", "query", "jobs", "fields-read", "fields-write"]
`;
const JOBS = "/v3/InsightsDomains/Conversations/QueryJobs";

const started = [];

async function start(place, { moreConfig = "", ...options } = {}) {
  const isAlone = place === "alone";
  const simulator = await (isAlone ? Simulator.start() : Stack.start({ moreConfig: TEAM + moreConfig }));
  started.push(simulator);
  const url = isAlone ? simulator.upstream : simulator.url;
  const [user, password] = isAlone ? [ACCOUNT_KEY, "secret"] : ["all", TOKEN];
  const client = twilio(user, password, { accountSid: ACCOUNT_SID, ...options });
  client.insights.baseUrl = url;
  return { simulator, url, v3: client.insights.v3 };
}

/** The same against the simulator alone and through a gateway. */
function testBoth(name, run) {
  for (const place of ["alone", "behind a gateway"]) test(`${name}, ${place}`, () => run(place));
}

afterEach(() => Promise.all(started.splice(0).map((simulator) => simulator.close())));

/** A job with one row for each conversation. Jobs with other orders are other jobs. */
const byConversation = (...orders) => ({
  domain: "Conversations",
  query: {
    measures: ["Conversation.Count"],
    dimensions: ["Conversation.ConversationId"],
    orderBy: orders.map((direction) => ({ field: "Conversation.ConversationId", direction })),
  },
});

// Three different orders, for three different jobs.
const ORDERS = [[], ["ASC"], ["DESC"]];

/** Polls as an application would, but more often. */
async function ended(v3, job) {
  const deadline = Date.now() + PATIENCE_MS;
  while (Date.now() < deadline) {
    const found = await v3.queryJobs(job.operationId).fetch();
    if (!["PENDING", "RUNNING"].includes(found.status)) return found;
    assert.equal(found.completedAt, null);
    await sleep(20);
  }
  throw new Error("the job has not ended");
}

const refused = (promise, status, code) =>
  assert.rejects(promise, (error) => {
    assert.deepEqual({ status: error.status, code: error.code }, { status, code });
    return true;
  });

testBoth("a job is created, polled and read page by page", async (place) => {
  const { url, v3 } = await start(place);
  const job = await v3.queryJobs.create(byConversation());
  assert.equal(job.status, "PENDING");
  assert.ok(job.statusUrl.startsWith(`${url}/v3/`));
  const done = await ended(v3, job);
  assert.equal(done.status, "COMPLETED");
  assert.equal(done.resultId, job.operationId);
  assert.ok(done.completedAt >= done.createdAt);
  const results = ResultListInstance(v3, job.operationId);
  const ids = new Set();
  let pageToken;
  do {
    const page = await results.fetch({ pageSize: 100, ...(pageToken && { pageToken }) });
    for (const row of page.items) ids.add(row["Conversation.ConversationId"]);
    pageToken = page.meta.nextToken;
  } while (pageToken);
  assert.equal(ids.size, ROWS);
});

testBoth("jobs are listed by status, and a key makes one job", async (place) => {
  const { simulator, v3 } = await start(place);
  await simulator.script({ next_jobs: 2, status: "FAILED", takes: "0s" });
  const jobs = [];
  for (const orders of ORDERS) jobs.unshift(await v3.queryJobs.create(byConversation(...orders)));
  const ids = jobs.map((job) => job.operationId);
  const listed = async (options) => (await v3.queryJobs.list(options)).map((job) => job.operationId);
  assert.deepEqual(await listed({ pageSize: 1 }), ids);
  assert.deepEqual(await listed({ limit: 2 }), ids.slice(0, 2));
  assert.deepEqual(await listed({ status: "FAILED", pageSize: 1 }), ids.slice(1));
  assert.equal((await v3.queryJobs(ids[1]).fetch()).error.code, 50001);

  const first = await v3.queryJobs.create(byConversation(), { "Idempotency-Key": KEY });
  const again = await v3.queryJobs.create(byConversation(), { "Idempotency-Key": KEY });
  assert.equal(again.operationId, first.operationId);
  const other = { query: { measures: ["Conversation.Count"] } };
  await refused(v3.queryJobs.create(other, { "Idempotency-Key": KEY }), 422, 20422);
});

testBoth("custom fields are created, patched and queried", async (place) => {
  const { v3 } = await start(place);
  const creation = (name) => ({
    category: "MEASURE",
    name,
    entityMetadata: {
      sourceType: "INTELLIGENCE_OPERATOR",
      intelligenceOperator: { operatorId: OPERATOR, field: "leadScore" },
    },
  });
  const made = await v3.customFieldMappings.create(creation("LeadScore"));
  await refused(v3.customFieldMappings.create(creation("LeadScore")), 409, 20052);
  await v3.customFieldMappings.create(creation("Heat"));
  const names = (await v3.customFieldMappings.list({ pageSize: 1 })).map((field) => field.name);
  assert.deepEqual(names, ["LeadScore", "Heat"]);
  const capacity = await v3.customFieldMappingsCapacity.fetch();
  assert.deepEqual({ ...capacity.measure }, { consumed: 2, remaining: 1 });

  const { headers } = await v3.customFieldMappings(made.id).fetchWithHttpInfo();
  const change = {
    entityMetadata: {
      sourceType: "INTELLIGENCE_OPERATOR",
      intelligenceOperator: { field: "engagement.messages" },
    },
  };
  const patched = await v3.customFieldMappings(made.id).patch(change, { "If-Match": headers.etag });
  assert.equal(patched.entityMetadata.intelligenceOperator.field, "engagement.messages");
  await refused(v3.customFieldMappings(made.id).patch(change, { "If-Match": headers.etag }), 412, 20412);

  const measure = "ConversationSummary.HeatAverage";
  const { cubes } = await v3.metadata.fetch();
  assert.ok(cubes.some((cube) => cube.measures.some(({ name }) => name === measure)));
  const { items } = await v3.query.create({ query: { measures: [measure] } });
  assert.ok(items[0][measure] > 0);
});

/** The number of such requests that the simulator has received. */
async function asked(simulator, method, wanted) {
  const received = await simulator.received();
  return received.filter((entry) => entry.method === method && entry.path.split("?")[0] === wanted).length;
}

test("identical submissions are one job, which is polled and read once for all", async () => {
  const { simulator, url, v3 } = await start("behind a gateway");
  const jobs = await Promise.all([1, 2, 3].map(() => v3.queryJobs.create(byConversation())));
  assert.equal(new Set(jobs.map((job) => job.operationId)).size, 1);
  assert.equal(await asked(simulator, "POST", JOBS), 1);

  const began = Date.now();
  const ends = await Promise.all(jobs.map((job) => ended(v3, job)));
  assert.ok(ends.every((end) => end.status === "COMPLETED" && end.resultUrl.startsWith(`${url}/v3/`)));
  // The simulator asks clients to wait at least a second between two polls.
  const polls = await asked(simulator, "GET", `${JOBS}/${jobs[0].operationId}`);
  assert.ok(polls <= (Date.now() - began) / 1000 + 1, `${polls} polls`);

  const results = ResultListInstance(v3, jobs[0].operationId);
  for (const _ of jobs) assert.equal((await results.fetch({ pageSize: 1000 })).items.length, ROWS);
  assert.equal(await asked(simulator, "GET", `${JOBS}/${jobs[0].operationId}/Results`), 1);
});

test("the SDK's own retries of a submission that was refused make one job", async () => {
  const moreConfig = '[retry]\nattempts = 1\nbase = "10ms"\n';
  const { simulator, v3 } = await start("behind a gateway", { moreConfig, autoRetry: true });
  await simulator.script({ next: 1, path: JOBS, method: "POST", status: 429 });
  const job = await v3.queryJobs.create(byConversation());
  const done = await ended(v3, job);
  assert.equal(done.status, "COMPLETED");
  assert.equal((await v3.queryJobs.list()).length, 1);
  assert.equal(await asked(simulator, "POST", JOBS), 2);
});
