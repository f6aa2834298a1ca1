"""Sends asynchronous events that failed to the on-failure destination: a queue or an HTTP endpoint.

What is sent is Lambda's invocation record:
https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from events import aws
from runtime.lambda_host.failures import InvocationResult
from runtime.lambda_host.function import FUNCTION_VERSION

_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5.0, 10.0
_RETRIES, _BACK_OFF_S = 3, 0.5
# /ACCOUNT/NAME: on AWS, and on every local SQS.
_QUEUE_PATH = re.compile(r"(/queue/[\w-]+)?/\d{12}/[\w-]{1,80}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedEvent:
    """An event that is not tried again, and why.

    `condition` is RetriesExhausted or EventAgeExceeded as on Lambda, or HostStopped. `result` is
    that of the last try; None if there was no try.
    """

    request_id: str
    function_arn: str
    condition: str
    tries: int
    event: bytes
    result: InvocationResult | None

    def record(self) -> dict[str, Any]:
        """The invocation record."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record: dict[str, Any] = {
            "version": "1.0",
            "timestamp": now,
            "requestContext": {
                "requestId": self.request_id,
                "functionArn": f"{self.function_arn}:{FUNCTION_VERSION}",
                "condition": self.condition,
                "approximateInvokeCount": self.tries,
            },
            "requestPayload": json.loads(self.event),
        }
        if self.result:
            record["responseContext"] = {
                "statusCode": 200,
                "executedVersion": FUNCTION_VERSION,
                "functionError": "Unhandled",
            }
            record["responsePayload"] = json.loads(self.result.payload)
        return record


def destination_of(url: str, on_state: Callable[[str], object]) -> Callable[[FailedEvent], None]:
    """A function that sends a failed event to `url`: an SQS queue, an HTTP URL, or "" for none.

    It never raises. `on_state` gets one sentence for each event, without its payload.
    """

    def deliver(failed: FailedEvent) -> None:
        text = f"event {failed.request_id} given up after {failed.tries} tries, {failed.condition}"
        if not url:
            on_state(text)
            return
        try:
            send(json.dumps(failed.record()))
        except Exception as error:  # of boto3 or of requests; the text may hold a token of the URL
            on_state(f"{text}; the destination refused: {aws.error_name(error)}")
        else:
            on_state(f"{text}, sent to the destination")

    is_queue = _QUEUE_PATH.fullmatch(urlsplit(url).path)
    send = _queue_sender(url) if is_queue else _http_sender(url)
    return deliver


def _queue_sender(url: str) -> Callable[[str], object]:
    from runtime.lambda_host.sqs_queue import sqs_client  # noqa: PLC0415 - boto3 takes 0.3 s

    client = sqs_client(url)
    return lambda body: client.send_message(QueueUrl=url, MessageBody=body)


def _http_sender(url: str) -> Callable[[str], object]:
    import requests  # noqa: PLC0415 - 100 ms, and most hosts have no such destination
    from requests.adapters import HTTPAdapter  # noqa: PLC0415
    from urllib3 import Retry  # noqa: PLC0415

    retry = Retry(
        _RETRIES,
        backoff_factor=_BACK_OFF_S,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,  # POST, too: a record that is delivered twice has the same requestId
    )

    def send(body: str) -> None:
        with requests.Session() as session:
            session.mount(url, HTTPAdapter(max_retries=retry))
            answer = session.post(
                url,
                data=body.encode(),
                headers={"Content-Type": "application/json"},
                timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S),
                allow_redirects=False,
            )
            answer.raise_for_status()

    return send
