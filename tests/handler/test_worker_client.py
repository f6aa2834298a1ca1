"""The handler's side of the worker's socket, when nobody answers there."""

import os
import socket
import time
from pathlib import Path

import pytest

from handler import worker_client
from handler.settings import Settings


def test_worker_that_stands_still_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_client, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(worker_client, "_RENEWED_WITHIN_S", 0.2)
    settings = Settings.from_env(os.environ | {"WORKER_DIR": str(tmp_path)})
    asking = worker_client.WorkerClient(settings)
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(tmp_path / "worker.sock"))
        # The kernel takes connections, as it does for a process that was stopped.
        frozen.listen(100)
        began = time.monotonic()

        with pytest.raises(TimeoutError):
            asking.begin_wake(())
        asking.restart()
        asking.done()

    assert time.monotonic() - began < 5
    asking.close()
