"""The job record, the one place for what is known about a job, and the stores that keep it.

The handler uses `Jobs` and `Claim` (`claims`). `record` says what a record holds, `store` what a
store can do; `sqlite` and `dynamodb` are the two stores.
"""

from handler.jobs.claims import Claim, Jobs

__all__ = ["Claim", "Jobs"]
