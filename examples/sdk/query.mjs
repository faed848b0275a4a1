import twilio from "twilio";

// The gateway has the real credentials. Where it has teams: a team's name and its token.
const client = twilio("any", "any", { accountSid: "AC" + "0".repeat(32) });
client.insights.baseUrl = process.env.INSIGHTS_URL ?? "http://127.0.0.1:8080";

const page = await client.insights.v3.query.create({
  query: {
    measures: ["Conversation.Count"],
    dimensions: ["Conversation.ConversationStatus"],
  },
});
for (const row of page.items) {
  console.log(row["Conversation.ConversationStatus"], row["Conversation.Count"]);
}
