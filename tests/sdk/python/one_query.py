"""Sends one query through the gateway at the given URL, and prints its Cache-Status and rows as JSON.

For tests that compare what another SDK sees.
"""

import json
import sys

from queries import by_status, client_of, headers

answer = client_of(sys.argv[1]).insights.v3.query.create_with_http_info(by_status())
print(json.dumps({"cacheStatus": headers(answer)["cache-status"], "items": answer.data.items}))
