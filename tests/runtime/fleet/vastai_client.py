"""The official client of the hosted product, `vastai`, as its documentation shows it.

It runs in an environment of its own (infra/vastai-requirements.txt):
python vastai_client.py ROUTER_URL API_KEY REQUESTS
Prints a JSON object: what each request was answered, and the workers of the endpoint.
"""

import asyncio
import dataclasses
import json
import ssl
import sys
from typing import Any

from vastai.serverless.client.client import Serverless


class Client(Serverless):  # type: ignore[misc]
    async def get_ssl_context(self) -> ssl.SSLContext:
        return ssl.create_default_context()


async def main(url: str, key: str, count: int) -> dict[str, Any]:
    async with Client(key, autoscaler_url=url, webserver_url=url) as client:
        endpoint = await client.get_endpoint("comfyui")
        print("asking", file=sys.stderr, flush=True)
        requests = [
            endpoint.request("/generate/sync", {"input": {"request_id": f"job-{number}", **WORK}})
            for number in range(count)
        ]
        answers = await asyncio.gather(*requests)
        workers = await client.get_endpoint_workers(endpoint)
    return {
        "answers": [
            {name: each[name] for name in ("ok", "status", "response")} for each in answers
        ],
        "workers": [dataclasses.asdict(worker) for worker in workers],
    }


WORK = {"workflow_json": json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}}

if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
