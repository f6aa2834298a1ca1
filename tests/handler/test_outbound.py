"""Which addresses the URLs of a request may lead to, with real servers on loopback addresses."""

import socket
import ssl
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from handler.outbound import Allowed, ForbiddenAddress, addresses_of
from handler.settings import Settings, SettingsError
from runtime.local_s3 import LocalS3
from tests import workflows
from tests.conftest import WebhookReceiver, run, serve_webhook

LOOPBACK_SPELLINGS = [
    *("127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1"),
    *("0", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
    *("localhost", "LOCALHOST", "①②⑦.⓪.⓪.①"),
]
FORBIDDEN = [
    *("10.0.0.5", "172.16.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1", "192.0.2.1"),
    *("224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
    *("2002:7f00:1::", "2001:0:1::1", "5f00::1"),
]
METADATA = [
    *("169.254.169.254", "169.254.170.2", "0xa9fea9fe", "::ffff:169.254.169.254", "fe80::1"),
    *("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    *("64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"),
]
PUBLIC = ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]


def make_certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """The files of a self-signed certificate of this host, and of its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture
def nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOUND_ALLOW", "")


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], None]:
    """Let a name have one address after the other at each look-up, the last one from then on."""
    system = socket.getaddrinfo
    names: dict[str, list[str]] = {}

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if addresses := names.get(host):
            host = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return system(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return names.__setitem__


@pytest.mark.parametrize("host", [*FORBIDDEN, *METADATA, *LOOPBACK_SPELLINGS])
def test_address_that_is_not_public_is_forbidden(host: str) -> None:
    with pytest.raises(ForbiddenAddress):
        addresses_of(host, 80, Allowed())


@pytest.mark.parametrize("host", PUBLIC)
def test_public_address_is_permitted(host: str) -> None:
    assert addresses_of(host, 80, Allowed()) == [host]


@pytest.mark.parametrize("host", METADATA)
@pytest.mark.parametrize("allowed", ["0.0.0.0/0, ::/0", "metadata.test"])
def test_metadata_address_is_forbidden_whatever_is_allowed(
    host: str, allowed: str, resolve: Callable[[str, list[str]], None]
) -> None:
    resolve("metadata.test", [host])

    for name in (host, "metadata.test"):
        with pytest.raises(ForbiddenAddress, match="metadata"):
            addresses_of(name, 80, Allowed.parse(allowed))


@pytest.mark.parametrize("host", ["10.1.2.3", "::ffff:10.1.2.3", "fd12::5", "127.0.0.1"])
def test_allowed_network_is_permitted(host: str) -> None:
    allowed = Allowed.parse("10.1.0.0/16, fd12::/16,127.0.0.1")

    assert addresses_of(host, 80, allowed)
    with pytest.raises(ForbiddenAddress):
        addresses_of("10.2.0.1", 80, allowed)


def test_allowed_host_is_permitted_by_its_name_alone() -> None:
    allowed = Allowed.parse("LocalHost.")

    assert addresses_of("localHOST", 80, allowed)
    with pytest.raises(ForbiddenAddress):
        addresses_of("127.0.0.1", 80, allowed)


def test_host_with_one_forbidden_address_among_public_ones_is_forbidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system = socket.getaddrinfo

    def both(host: str, *args: Any, **kwargs: Any) -> Any:
        return [
            *system("8.8.8.8", *args, **kwargs),
            *system("10.0.0.5", *args, **kwargs),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", both)

    with pytest.raises(ForbiddenAddress):
        addresses_of("both.test", 80, Allowed())


@pytest.mark.parametrize("wrong", ["10.0.0.1/8", "300.0.0.1", "http://a", "10.0.0.0/40", "a b"])
def test_wrong_setting_is_refused_with_what_to_write(wrong: str) -> None:
    with pytest.raises(SettingsError, match=r"OUTBOUND_ALLOW .*: expected networks such as"):
        Settings.from_env({"OUTBOUND_ALLOW": f"10.0.0.0/8, {wrong}"})


@pytest.mark.parametrize("host", LOOPBACK_SPELLINGS)
def test_webhook_of_a_request_does_not_reach_loopback(
    host: str, nothing_allowed: None, webhook_receiver: WebhookReceiver
) -> None:
    url = f"http://{host}:{urlsplit(webhook_receiver.url).port}/interrupt"

    response = run(workflows.image(), webhook={"url": url})

    assert response["error"]["type"] == "InvalidRequest"
    assert response["message"].startswith("input.webhook.url: its host has an address of a private")
    assert "OUTBOUND_ALLOW" in response["message"]
    assert response["comfyui_response"] == {}
    assert webhook_receiver.calls == []


def test_webhook_of_an_invalid_request_does_not_reach_loopback(
    nothing_allowed: None, webhook_receiver: WebhookReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    run({}, webhook={"url": webhook_receiver.url})

    assert webhook_receiver.calls == []
    (failure,) = (r for r in caplog.records if getattr(r, "event", "") == "webhook.failed")
    assert "OUTBOUND_ALLOW" in str(failure.__dict__["reason"])


def test_webhook_through_a_proxy_does_not_reach_loopback(
    nothing_allowed: None, webhook_receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", webhook_receiver.url)
    monkeypatch.setenv("NO_PROXY", "")

    run({}, webhook={"url": "http://169.254.169.254/latest/meta-data/"})

    assert webhook_receiver.calls == []


def test_webhook_that_is_redirected_to_loopback_is_not_followed(
    webhook_receiver: WebhookReceiver,
) -> None:
    webhook_receiver.answers = [307]
    webhook_receiver.location = webhook_receiver.url + "/interrupt"

    run({}, webhook={"url": webhook_receiver.url})

    assert len(webhook_receiver.calls) == 1


@pytest.mark.parametrize("lookups", range(1, 5))
def test_name_that_changes_its_address_does_not_lead_to_a_forbidden_one(
    lookups: int,
    resolve: Callable[[str, list[str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OUTBOUND_ALLOW", "127.0.0.2")
    with serve_webhook("127.0.0.2") as permitted:
        port = urlsplit(permitted.url).port or 0
        with serve_webhook("127.0.0.1", port) as forbidden:
            resolve("rebind.test", ["127.0.0.2"] * lookups + ["127.0.0.1"])

            run({}, webhook={"url": f"http://rebind.test:{port}/hook"})

    assert forbidden.calls == []


def test_webhook_of_an_allowed_name_is_called(
    resolve: Callable[[str, list[str]], None],
    webhook_receiver: WebhookReceiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OUTBOUND_ALLOW", "hooks.test")
    resolve("hooks.test", ["127.0.0.1"])

    run({}, webhook={"url": f"http://hooks.test:{urlsplit(webhook_receiver.url).port}/hook"})

    assert len(webhook_receiver.calls) == 1
    assert webhook_receiver.calls[0][0]["Host"].startswith("hooks.test:")


@pytest.mark.slow
@pytest.mark.parametrize(("certified", "calls"), [("hooks.test", 1), ("other.test", 0)])
def test_certificate_of_an_allowed_host_is_verified_by_its_name(
    certified: str,
    calls: int,
    resolve: Callable[[str, list[str]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificate, key = make_certificate(tmp_path, certified)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("OUTBOUND_ALLOW", "hooks.test")
    resolve("hooks.test", ["127.0.0.1"])
    with serve_webhook(tls=context) as receiver:
        port = urlsplit(receiver.url).port

        run({}, webhook={"url": f"https://hooks.test:{port}/hook"})

    assert len(receiver.calls) == calls


def test_webhook_of_the_environment_is_not_restricted(
    nothing_allowed: None, webhook_receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_URL", webhook_receiver.url)

    run({})
    run({}, webhook={"url": webhook_receiver.url})

    assert len(webhook_receiver.calls) == 2


def test_webhook_of_a_request_gets_no_credentials_of_the_machine(
    webhook_receiver: WebhookReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login operator password canary\n")
    netrc.chmod(stat.S_IRUSR)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("WEBHOOK_SECRET", "canary")
    monkeypatch.setenv("WEBHOOK_SECOND_SECRET", "canary")

    run({}, webhook={"url": webhook_receiver.url})

    ((headers, _),) = webhook_receiver.calls
    assert not {"Authorization", "X-Webhook-Signature", "webhook-signature"} & headers.keys()


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "localhost"])
def test_endpoint_of_a_request_does_not_reach_loopback(
    host: str, nothing_allowed: None, webhook_receiver: WebhookReceiver
) -> None:
    fields = {
        "access_key_id": "id",
        "secret_access_key": "key",
        "bucket_name": "bucket",
        "endpoint_url": f"http://{host}:{urlsplit(webhook_receiver.url).port}",
    }

    response = run(workflows.image(), s3=fields)

    assert response["error"]["type"] == "InvalidRequest"
    assert response["message"].startswith("input.s3.endpoint_url: its host has an address")


@pytest.mark.parametrize("keys", [{}, {"access_key_id": "id"}, {"secret_access_key": "key"}])
def test_endpoint_of_a_request_gets_no_signature_by_the_operators_keys(
    keys: dict[str, str], webhook_receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_ACCESS_KEY_ID", "operator")
    monkeypatch.setenv("S3_SECRET_ACCESS_KEY", "canary")
    fields = {"endpoint_url": webhook_receiver.url, "bucket_name": "bucket", **keys}

    response = run(workflows.image(), s3=fields)

    assert response["error"]["type"] == "InvalidRequest"
    assert "access_key_id and secret_access_key" in response["message"]
    assert response["comfyui_response"] == {}


def test_store_of_the_environment_is_not_restricted(
    nothing_allowed: None, s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)

    for fields in ({}, {"endpoint_url": s3.endpoint_url}):
        (item,) = run(workflows.image(), s3=fields)["output"]
        assert item["url"].startswith(s3.endpoint_url)


@pytest.mark.parametrize("lookups", range(1, 3))
def test_store_whose_name_changes_its_address_is_not_called(
    lookups: int,
    s3: LocalS3,
    resolve: Callable[[str, list[str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OUTBOUND_ALLOW", "127.0.0.2")
    resolve("rebind.test", ["127.0.0.2"] * lookups + ["127.0.0.1"])
    fields = {
        "access_key_id": s3.access_key_id,
        "secret_access_key": s3.secret_access_key,
        "bucket_name": s3.bucket_name,
        "endpoint_url": f"http://rebind.test:{urlsplit(s3.endpoint_url).port}",
    }

    response = run(workflows.image(), s3=fields)

    (item,) = response["output"]
    assert "s3.endpoint_url" in item["upload_error"]
    assert "url" not in item
