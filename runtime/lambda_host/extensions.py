"""The extensions of one environment: their registration, their states, their SHUTDOWN event.

There is no HTTP here: extensions_api.py has it. States and refusals follow Managed Instances, as in
https://github.com/aws/aws-lambda-runtime-interface-emulator/tree/main/internal/lambda-managed-instances
"""

import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from runtime.errors import LambdaComfyUIError

MAX_EXTENSIONS = 10
SHUTDOWN = "SHUTDOWN"


class ExtensionRefusedError(LambdaComfyUIError):
    """A call that the Extensions API answers with 403."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class _State(StrEnum):
    REGISTERED = "Registered"
    READY = "Ready"  # waits in `next`
    RUNNING = "Running"  # has got an event
    FAILED = "Failed"


@dataclass(eq=False, slots=True)
class _Extension:
    name: str
    is_external: bool
    wants_shutdown: bool
    state: _State = _State.REGISTERED


class Extensions:
    """`changed` is the lock of the host; it guards everything and is notified of every change.

    `expected` is how many processes the host starts: the runtime waits until all of them have
    registered. `on_error` gets the type and the message of every error that an extension reports,
    with the lock held.
    """

    def __init__(
        self, changed: threading.Condition, expected: int, *, on_error: Callable[[str, str], object]
    ) -> None:
        self._changed, self._expected, self._on_error = changed, expected, on_error
        self._known: dict[str, _Extension] = {}
        self._is_closed = False
        self._is_over = False
        self._shutdown: dict[str, Any] | None = None

    @property
    def are_registered(self) -> bool:
        return sum(each.is_external for each in self._known.values()) >= self._expected

    @property
    def are_ready(self) -> bool:
        """Whether every extension has asked for its next event. Call it with `changed` held."""
        return self.are_registered and all(
            each.state is not _State.REGISTERED for each in self._known.values()
        )

    @property
    def await_shutdown(self) -> bool:
        """Whether all of the host's processes wait for SHUTDOWN. Call it with `changed` held."""
        return self.are_registered and all(
            each.wants_shutdown and each.state is _State.READY
            for each in self._known.values()
            if each.is_external
        )

    def register(self, name: str, events: Sequence[str], *, is_external: bool) -> str:
        """Returns the identifier. Raises ExtensionRefusedError."""
        for event in events:
            if event != SHUTDOWN or not is_external:
                # Managed Instances have no INVOKE event: they run many invocations at once.
                raise ExtensionRefusedError("Extension.InvalidEventType", f"{event}: not allowed")
        with self._changed:
            self._check_registration(name)
            identifier = str(uuid.uuid4())
            self._known[identifier] = _Extension(name, is_external, SHUTDOWN in events)
            self._changed.notify_all()
            return identifier

    def _check_registration(self, name: str) -> None:
        if not name:
            raise ExtensionRefusedError("Extension.InvalidExtensionName", "Empty extension name")
        if self._is_closed:
            message = "Extension registration closed already"
            raise ExtensionRefusedError("Extension.RegistrationClosed", message)
        if any(each.name == name for each in self._known.values()):
            message = "Extension with this name already registered"
            raise ExtensionRefusedError("Extension.InvalidExtensionState", message)
        if len(self._known) >= MAX_EXTENSIONS:
            message = f"Extension limit ({MAX_EXTENSIONS}) reached"
            raise ExtensionRefusedError("Extension.TooManyExtensions", message)

    def next_event(self, identifier: str | None) -> dict[str, Any]:
        """Block until the environment shuts down. Raises ExtensionRefusedError."""
        with self._changed:
            extension = self._find(identifier)
            if extension.state not in (_State.REGISTERED, _State.RUNNING):
                raise self._wrong_state(extension, _State.READY)
            extension.state = _State.READY
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._is_over or (self._shutdown and extension.wants_shutdown)
            )
            if self._shutdown is None or not extension.wants_shutdown:
                raise self._wrong_state(extension, _State.RUNNING)
            extension.state = _State.RUNNING
            return self._shutdown

    def fail(
        self, identifier: str | None, error_type: str | None, reason: str, *, is_init: bool
    ) -> None:
        """Take an `init/error` or an `exit/error`. Raises ExtensionRefusedError."""
        with self._changed:
            extension = self._find(identifier)
            if not error_type:
                message = "Lambda-Extension-Function-Error-Type not found"
                raise ExtensionRefusedError("Extension.MissingHeader", message)
            if is_init and extension.state not in (_State.REGISTERED, _State.FAILED):
                raise self._wrong_state(extension, _State.FAILED)
            extension.state = _State.FAILED
            self._on_error(error_type, reason)
            self._changed.notify_all()

    def close_registration(self) -> None:
        with self._changed:
            self._is_closed = True

    def shut_down(self, deadline_ms: int, reason: str) -> None:
        """Give the SHUTDOWN event to all extensions that want it; `deadline_ms` is Unix time."""
        with self._changed:
            self._shutdown = {
                "eventType": SHUTDOWN,
                "deadlineMs": deadline_ms,
                "shutdownReason": reason,
            }
            self._changed.notify_all()

    def end(self) -> None:
        """End the calls that still wait: all processes have ended."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _find(self, identifier: str | None) -> _Extension:
        if not identifier:
            message = "Missing Lambda-Extension-Identifier header"
            raise ExtensionRefusedError("Extension.MissingExtensionIdentifier", message)
        try:
            key = str(uuid.UUID(identifier))
        except ValueError as error:
            message = "Invalid Lambda-Extension-Identifier"
            raise ExtensionRefusedError("Extension.InvalidExtensionIdentifier", message) from error
        if key not in self._known:
            message = f"Unknown extension {key}"
            raise ExtensionRefusedError("Extension.UnknownExtensionIdentifier", message)
        return self._known[key]

    def _wrong_state(self, extension: _Extension, wanted: _State) -> ExtensionRefusedError:
        message = (
            f"State transition from {extension.state} to {wanted} failed"
            f" for extension {extension.name}"
        )
        return ExtensionRefusedError("Extension.InvalidExtensionState", message)
