# Refusals and failures, newest last: when, status, team, reason, request id. Use with -r.
select(.target == "insights_gateway::access" and .reason != "")
| [.timestamp, .status, .team, .reason, .request_id]
| @tsv
