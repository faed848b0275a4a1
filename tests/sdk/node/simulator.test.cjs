"use strict";

// Sends requests with Twilio's own, unmodified Node SDK to the simulator alone, since the other tests rely on it.

const assert = require("node:assert/strict");
const { afterEach, test } = require("node:test");
const { setTimeout: sleep } = require("node:timers/promises");

const twilio = require("twilio");
const { ResultListInstance } = require("twilio/lib/rest/insights/v3/result");

const { ACCOUNT_KEY, ACCOUNT_SID, PATIENCE_MS, ROWS, Simulator } = require("./stack.cjs");

// The id in Twilio's own examples. In the simulator, it is the only operator that writes JSON.
const OPERATOR = "intelligence_operator_01h9d8r0vte3hz8tykdj329t7r";
const KEY = "01890a5d-aa0f-7c80-b8e6-0242ac140004";

const started = [];

async function start() {
  const simulator = await Simulator.start();
  started.push(simulator);
  const client = twilio(ACCOUNT_KEY, "secret", { accountSid: ACCOUNT_SID });
  client.insights.baseUrl = simulator.upstream;
  return { simulator, v3: client.insights.v3 };
}

afterEach(() => Promise.all(started.splice(0).map((simulator) => simulator.close())));

const byConversation = () => ({
  domain: "Conversations",
  query: { measures: ["Conversation.Count"], dimensions: ["Conversation.ConversationId"] },
});

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

test("a job is created, polled and read page by page", async () => {
  const { simulator, v3 } = await start();
  const job = await v3.queryJobs.create(byConversation());
  assert.equal(job.status, "PENDING");
  assert.ok(job.statusUrl.startsWith(simulator.upstream));
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

test("jobs are listed by status, and a key makes one job", async () => {
  const { simulator, v3 } = await start();
  await simulator.script({ next_jobs: 2, status: "FAILED", takes: "0s" });
  const jobs = [];
  for (let n = 0; n < 3; n += 1) jobs.unshift(await v3.queryJobs.create(byConversation()));
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

test("custom fields are created, patched and queried", async () => {
  const { v3 } = await start();
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
