"""What the tests of event sources share: AWS, played by moto's server."""

from collections.abc import Iterator

import pytest
from moto.core.config import default_user_config

from tests.aws import moto_server


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server; every client of this process finds it by the usual variables."""
    # Without it moto only writes down that an execution was started.
    monkeypatch.setitem(default_user_config, "stepfunctions", {"execute_state_machine": True})
    with moto_server(monkeypatch) as url:
        # Where its state machines find the other services.
        monkeypatch.setenv("MOTO_PORT", url.rpartition(":")[2])
        yield url
