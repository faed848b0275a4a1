# Requests that took longer than a second: milliseconds in all, waiting for a token, and upstream. Use with -r.
select(.target == "insights_gateway::access" and .duration_ms > 1000)
| [.timestamp, .team, .operation, .outcome, .duration_ms, .wait_ms, .upstream_ms]
| @tsv
