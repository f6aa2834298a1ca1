"""What the tests of event sources share: AWS, played by moto's server."""

from collections.abc import Iterator

import pytest
from moto.core.config import default_user_config
from moto.server import ThreadedMotoServer


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server; every client of this process finds it by the usual variables."""
    # Without it moto only writes down that an execution was started.
    monkeypatch.setitem(default_user_config, "stepfunctions", {"execute_state_machine": True})
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # Where its state machines find the other services.
    monkeypatch.setenv("MOTO_PORT", str(port))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    yield f"http://{host}:{port}"
    server.stop()
