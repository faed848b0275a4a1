import os
import time

from twilio.rest import Client
from twilio.rest.insights.v3.query import QueryList
from twilio.rest.insights.v3.query_job import QueryJobList
from twilio.rest.insights.v3.result import ResultList

client = Client("any", "any", "AC" + "0" * 32)
client.insights.base_url = os.environ.get("INSIGHTS_URL", "http://127.0.0.1:8080")
v3 = client.insights.v3

# The SDK cannot send a plain dictionary as the query of a job.
question = QueryList.QueryDefinition(
    {
        "measures": ["Conversation.Count"],
        "dimensions": ["Conversation.ConversationStatus"],
    }
)
job = v3.query_jobs.create(QueryJobList.InsightsQueryRequest({"query": question}))
while job.status in ("PENDING", "RUNNING"):
    time.sleep(1)
    job = v3.query_jobs(job.operation_id).fetch()
if job.status != "COMPLETED":
    raise SystemExit(f"the job is {job.status}: {job.error}")

results = ResultList(v3, job.operation_id)
page = results.fetch(page_size=1000)
while True:
    for row in page.items:
        print(row["Conversation.ConversationStatus"], row["Conversation.Count"])
    token = page.meta.get("nextToken")
    if not token:
        break
    page = results.fetch(page_size=1000, page_token=token)
