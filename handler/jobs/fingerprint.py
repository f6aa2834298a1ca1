"""What makes two requests the same job, as hashes that hold no secret.

A request is compared as a whole, but for what a client may renew before it sends the same job
again: credentials, the secret of the webhook, and the signature of a pre-signed URL
(docs/decisions/0007-repeated-requests.md). What a difference leads to is decided in `claims` for
the job store and in handler/job_folder.py for the bucket.
"""

import json
import re
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

from events.job import Job, S3Override

# The parameters of a pre-signed URL, in JSON text:
# https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html and
# https://cloud.google.com/storage/docs/authentication/signatures
_URL_SIGNATURE = re.compile(r'[?&]X-(?:Amz|Goog)-[A-Za-z0-9-]+=[^&#"\\\s]*')


def fingerprint(value: Any) -> str:
    """The SHA-256 hash of a JSON value, in hexadecimal digits."""
    return _hash(_as_json(value))


def request_fingerprint(job: Job) -> str:
    """Two requests with the same id are the same job if they have the same one."""
    caller = asdict(replace(job.caller, webhook_secret=""))
    if not job.caller.webhook_events:
        # Earlier versions did not know them.
        del caller["webhook_events"]
    s3 = asdict(S3Override(**{**asdict(job.s3), "access_key_id": "", "secret_access_key": ""}))
    request = [caller, job.content, s3, job.return_base64, job.return_temp]
    return _hash(_URL_SIGNATURE.sub("", _as_json(request)))


def file_mark(job: Job) -> str:
    """The mark of the job's files in a bucket.

    It covers the id and the workflow alone: everybody with a file's URL can read the file's
    metadata, and the address of a webhook may hold a token.
    """
    return _hash(_URL_SIGNATURE.sub("", _as_json([job.id, job.content])))


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()
