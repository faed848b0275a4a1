# Requests of each team by outcome: team, outcome, number of requests. Use with -rs.
map(select(.target == "insights_gateway::access"))
| group_by([.team, .outcome])[]
| [.[0].team, .[0].outcome, length]
| @tsv
