"""One job, and the caller who gets its response. Secrets never show in a `repr`."""

from dataclasses import dataclass, field
from typing import Any

# The statuses of a response of a job that is over.
ENDS = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The id of the request, and the webhook that gets the response. Empty means 'not given'."""

    request_id: str
    # The request named its id; otherwise it is a new UUID.
    is_id_given: bool = False
    webhook_url: str = field(default="", repr=False)
    webhook_secret: str = field(default="", repr=False)
    webhook_timeout_s: float | None = None
    # What the webhook is called about, as the request lists it.
    webhook_events: tuple[str, ...] = ()
    extra_params: dict[str, Any] = field(default_factory=dict)

    def wants_end(self, status: str) -> bool:
        """Whether the webhook is to be called about an end with this status of the response.

        A list without any end means every end.
        """
        ends = ENDS.intersection(self.webhook_events)
        return not ends or status in ends


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Override:
    """The request's own S3 settings; each empty field falls back to the environment."""

    access_key_id: str = field(default="", repr=False)
    secret_access_key: str = field(default="", repr=False)
    endpoint_url: str = ""
    bucket_name: str = ""
    region: str = ""

    @property
    def is_given(self) -> bool:
        return self != S3Override()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One workflow to run: the request's own, or that of a template with `modifications` in it.

    `workflow` is empty until handler/workflow_templates.py has filled the template in.
    """

    caller: Caller
    workflow: dict[str, Any]
    template: str = ""
    modifications: dict[str, Any] = field(default_factory=dict)
    s3: S3Override = field(default_factory=S3Override)
    return_base64: bool = False
    return_temp: bool = False

    @property
    def id(self) -> str:
        return self.caller.request_id

    @property
    def content(self) -> Any:
        """What the request asks for. A file of a template may change; the request has not, then."""
        return [self.template, self.modifications] if self.template else self.workflow
