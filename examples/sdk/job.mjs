import { setTimeout as sleep } from "node:timers/promises";

import twilio from "twilio";
import { ResultListInstance } from "twilio/lib/rest/insights/v3/result.js";

const client = twilio("any", "any", { accountSid: "AC" + "0".repeat(32) });
client.insights.baseUrl = process.env.INSIGHTS_URL ?? "http://127.0.0.1:8080";
const { v3 } = client.insights;

let job = await v3.queryJobs.create({
  query: {
    measures: ["Conversation.Count"],
    dimensions: ["Conversation.ConversationStatus"],
  },
});
while (["PENDING", "RUNNING"].includes(job.status)) {
  await sleep(1000);
  job = await v3.queryJobs(job.operationId).fetch();
}
if (job.status !== "COMPLETED") throw new Error(`the job is ${job.status}: ${JSON.stringify(job.error)}`);

const results = ResultListInstance(v3, job.operationId);
let page = await results.fetch({ pageSize: 1000 });
for (;;) {
  for (const row of page.items) {
    console.log(row["Conversation.ConversationStatus"], row["Conversation.Count"]);
  }
  if (!page.meta.nextToken) break;
  page = await results.fetch({ pageSize: 1000, pageToken: page.meta.nextToken });
}
