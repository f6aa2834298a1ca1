"""The addresses at which commands listen."""

import pytest

from runtime.commands.listening import is_loopback


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_endpoint_on_loopback_is_known(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
