"""Requests that an application would write with Twilio's Python SDK."""

from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client
from twilio.rest.insights.v3.query import QueryList

from stack import ACCOUNT_SID, PATIENCE_SECONDS

# The application uses these as its credentials. The simulator accepts only the password of its own account, so
# a response proves that the gateway replaced the credentials.
CALLER = ("SKcallers-own-key", "callers-own-secret")


def client_of(url, user=CALLER[0], password=CALLER[1], http_client=None):
    """An SDK client with another base URL, the only change that the documentation asks for."""
    client = Client(user, password, ACCOUNT_SID, http_client=http_client or TwilioHttpClient(timeout=PATIENCE_SECONDS))
    client.insights.base_url = url
    return client


def request(**query):
    return QueryList.InsightsQueryRequest({"domain": "Conversations", "query": query})


def by_status():
    return request(
        measures=["Conversation.Count"],
        dimensions=["Conversation.ConversationStatus"],
        filters=[
            {
                "op": "AND",
                "expressions": [
                    {"op": "IN", "field": "Conversation.ConversationStatus", "values": ["INACTIVE", "CLOSED"]},
                ],
            }
        ],
        orderBy=[{"field": "Conversation.Count", "direction": "DESC"}],
    )


def by_conversation():
    """A query that returns one row for each conversation."""
    return request(
        measures=["Conversation.Count"],
        dimensions=["Conversation.ConversationId"],
        orderBy=[{"field": "Conversation.ConversationId", "direction": "ASC"}],
    )


def headers(answer):
    return {name.lower(): value for name, value in answer.headers.items()}


def cache_status(answer):
    """The parameters of Cache-Status in a response, without the cache's name."""
    cache, *words = [word.strip() for word in headers(answer)["cache-status"].split(";")]
    assert cache == "insights-gateway"
    return words
