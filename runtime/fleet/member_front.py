"""The front of a worker in a fleet: requests that its router has sent, and strangers.

A request with a grant of the router runs. Everything else needs the token of the API, as always.
"""

import json
import math
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.api.application import ApiContext, create_app
from handler.api.dispatcher import NotOffered, Unavailable, WorkerReport
from handler.api.json_answer import JsonAnswer, message
from handler.api.request_body import BodyTooLarge, decode_body, limited
from handler.log import logger
from handler.settings import Settings
from runtime.errors import LambdaComfyUIError
from runtime.fleet.member import Member, RouterAddress
from runtime.fleet.signature import Command, Grant
from runtime.fleet.used_grants import FILE, UsedGrants
from runtime.fleet.worker_commands import ACTIONS, command_workers

COMMAND_PATH = "/fleet/command"
GRANTED_PATHS = frozenset({"/generate/sync", "/generate", "/generate/stream"})
# A request that was refused for its load may be routed again; so may one whose worker has failed.
_NOT_WORKED_OFF = frozenset({408, 429})
_ACCEPTED = 202
_MAX_COMMAND_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class SignedGrant:
    """A grant as a client has passed it on, with the router's signature."""

    grant: Grant
    signature: str


class NotGrantedError(LambdaComfyUIError):
    """The request has no valid grant: the HTTP status, and why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class MemberFront:
    """Passes granted requests to `open_app`, and everything else to `guarded_app`."""

    def __init__(
        self,
        member: Member,
        open_app: ASGIApp,
        guarded_app: ASGIApp,
        *,
        used_grants: UsedGrants,
        max_body_bytes: int,
        worker_sockets: Sequence[Path] = (),
    ) -> None:
        self._member, self._open_app, self._guarded_app = member, open_app, guarded_app
        self._max_body_bytes, self._worker_sockets = max_body_bytes, worker_sockets
        self._used_grants = used_grants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" and scope["method"] == "POST" else ""
        if path not in GRANTED_PATHS and path != COMMAND_PATH:
            await self._guarded_app(scope, receive, send)
            return
        # The body says who sends it, so those of strangers are read, too.
        limit = _MAX_COMMAND_BYTES if path == COMMAND_PATH else self._max_body_bytes
        try:
            body = await limited(Request(scope, receive), limit).body()
        except BodyTooLarge as error:
            await message(413, str(error), {"Connection": "close"})(scope, receive, send)
            return
        if path == COMMAND_PATH:
            answer = await to_thread.run_sync(self._obey, body)
            await answer(scope, receive, send)
            return
        replayed = _replay(body, receive)
        auth_data = await to_thread.run_sync(_auth_data_of, body)
        if not auth_data:
            await self._guarded_app(scope, replayed, send)
            return
        try:
            grant = await to_thread.run_sync(self._check, auth_data)
        except NotGrantedError as error:
            headers = {"Retry-After": "5"} if error.status == 503 else {}
            await message(error.status, str(error), headers)(scope, receive, send)
            return
        await self._run(grant, scope, replayed, send)

    def _obey(self, body: bytes) -> JsonAnswer:
        try:
            command = self._command_of(decode_body(body))
        except NotGrantedError as error:
            return message(error.status, str(error))
        command_workers(self._worker_sockets, command.action)
        return message(202, f"the workers are asked to {command.action}")

    def _command_of(self, body: Any) -> Command:
        """Raises NotGrantedError."""
        try:
            command = Command(str(body["url"]), str(body["action"]), float(body["expires"]))
            signature = str(body["signature"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise NotGrantedError(400, "the body is no signed command of a router") from None
        verifier = self._member.verifier()
        if verifier is None or not verifier.is_signed(command, signature):
            raise NotGrantedError(401, "the router of this worker has not signed the command")
        is_for_us = command.url == self._member.public_url
        if not is_for_us or command.expires < time.time() or command.action not in ACTIONS:
            raise NotGrantedError(401, "the command is for another worker, too late or unknown")
        return command

    def _check(self, auth_data: Mapping[str, Any]) -> Grant:
        """Raises NotGrantedError."""
        signed = _signed_grant(auth_data)
        verifier = self._member.verifier()
        if verifier is None:
            raise NotGrantedError(503, "this worker has no key of its router yet")
        if not verifier.is_signed(signed.grant, signed.signature):
            verifier = self._member.verifier(is_renewed=True)
        if verifier is None or not verifier.is_signed(signed.grant, signed.signature):
            raise NotGrantedError(401, "auth_data: the router of this worker has not signed it")
        now = time.time()
        if signed.grant.url != self._member.public_url:
            raise NotGrantedError(
                401, "auth_data.url: the router has sent this request to another worker"
            )
        if signed.grant.expires < now:
            text = "it has passed; ask the router again, and compare its clock with this worker's"
            raise NotGrantedError(401, f"auth_data.expires: {text}")
        try:
            is_new = self._used_grants.use(signed.grant, now)
        except sqlite3.Error as error:
            logger.error("a grant could not be noted as used", exc_info=error)
            raise NotGrantedError(503, "this worker cannot note what it has run") from error
        if not is_new:
            raise NotGrantedError(401, "auth_data: it was used before; ask the router again")
        return signed.grant

    async def _run(self, grant: Grant, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer()

        async def observe(sent: Message) -> None:
            answer.note(sent)
            await send(sent)

        work = self._member.begin(grant.request_idx, grant.cost)
        try:
            await self._open_app(scope, receive, observe)
        finally:
            job_id = answer.accepted_job
            if job_id:
                self._member.accept(work, job_id)
            else:
                self._member.end(work, success=answer.is_worked_off)


def join_fleet(
    context: ApiContext,
    settings: Settings,
    token: str,
    *,
    worker_report: Callable[[], WorkerReport],
    worker_sockets: Sequence[Path],
    on_state: Callable[[str], object],
) -> tuple[Member, ASGIApp]:
    """The member that ROUTER_URL asks for, and the application in front of its API.

    Raises OSError and sqlite3.Error if the folder of JOBS_DB cannot be used.
    """

    def is_over(job_id: str) -> bool:
        try:
            record = context.board.get(job_id)
        except (NotOffered, Unavailable):
            return False
        return record is None or record.status.is_final

    member = Member(
        RouterAddress(settings.router_url, settings.router_worker_token or settings.router_token),
        settings.public_url,
        worker_report=worker_report,
        is_over=is_over,
        on_state=on_state,
    )
    # Without a token of its own, the API is the router's alone.
    guarded_app = create_app(context, token or secrets.token_urlsafe())
    front = MemberFront(
        member,
        create_app(context),
        guarded_app,
        used_grants=UsedGrants((settings.jobs_db or settings.worker_dir / FILE).with_name(FILE)),
        max_body_bytes=context.max_body_bytes,
        worker_sockets=worker_sockets,
    )
    return member, front


class _Answer:
    """What a request was answered."""

    def __init__(self) -> None:
        self._status = 0
        self._body = b""

    def note(self, sent: Message) -> None:
        if sent["type"] == "http.response.start":
            self._status = sent["status"]
        elif self._status == _ACCEPTED:
            self._body += sent.get("body", b"")

    @property
    def is_worked_off(self) -> bool:
        return 0 < self._status < 500 and self._status not in _NOT_WORKED_OFF

    @property
    def accepted_job(self) -> str:
        """The id of the job that goes on after the answer; "" if none does."""
        if self._status != _ACCEPTED:
            return ""
        try:
            return str(json.loads(self._body)["id"])
        except (ValueError, KeyError, TypeError):
            # The connection has ended before the answer did.
            return ""


def _auth_data_of(body: bytes) -> Mapping[str, Any]:
    try:
        envelope = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    auth_data = envelope.get("auth_data") if isinstance(envelope, dict) else None
    return auth_data if isinstance(auth_data, dict) else {}


def _signed_grant(auth_data: Mapping[str, Any]) -> SignedGrant:
    """Raises NotGrantedError, which names the field that is missing."""
    try:
        grant = Grant(
            url=str(auth_data["url"]),
            endpoint=str(auth_data["endpoint"]),
            cost=float(auth_data["cost"]),
            reqnum=int(auth_data["reqnum"]),
            request_idx=int(auth_data["request_idx"]),
            expires=float(auth_data["expires"]),
        )
        if not math.isfinite(grant.expires):
            raise ValueError
        return SignedGrant(grant, str(auth_data["grant"]))
    except KeyError as error:
        text = f"auth_data.{error.args[0]} is missing; send the router's answer whole"
        raise NotGrantedError(401, text) from None
    except (TypeError, ValueError, OverflowError):
        raise NotGrantedError(
            401, "auth_data: a number is none; send the router's answer whole"
        ) from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """As `receive` was before the body was read."""
    is_read = False

    async def replayed() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
