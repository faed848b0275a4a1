import os

import insights

frame = insights.read(
    os.environ.get("INSIGHTS_GATEWAY_URL", "http://127.0.0.1:8080"),
    {
        "measures": ["Conversation.Count"],
        "dimensions": ["Conversation.CreatedDate.day", "Conversation.ConversationStatus"],
    },
)
table = frame.pivot_table(
    index="Conversation.CreatedDate.day",
    columns="Conversation.ConversationStatus",
    values="Conversation.Count",
    aggfunc="sum",
    fill_value=0,
)
print(table.resample("W").sum())
