import os

from twilio.rest import Client
from twilio.rest.insights.v3.query import QueryList

# The gateway has the real credentials. Where it has teams: a team's name and its token.
client = Client("any", "any", "AC" + "0" * 32)
client.insights.base_url = os.environ.get("INSIGHTS_URL", "http://127.0.0.1:8080")

question = {
    "measures": ["Conversation.Count"],
    "dimensions": ["Conversation.ConversationStatus"],
}
page = client.insights.v3.query.create(QueryList.InsightsQueryRequest({"query": question}))
for row in page.items:
    print(row["Conversation.ConversationStatus"], row["Conversation.Count"])
