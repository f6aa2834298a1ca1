"""Weights of an S3 prefix come to a folder: once, whole, and only if they fit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from infra import fetch_models
from infra.fetch_models import FetchError, fetch


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="weights")
        for key, body in {
            "models/": b"",
            "models/vae/wan.safetensors": b"v" * 10,
            "models/checkpoints/sd15/a.safetensors": b"c" * 20,
            "other/secret": b"x",
        }.items():
            client.put_object(Bucket="weights", Key=key, Body=body)
        yield client


def test_prefix_becomes_a_folder(s3: Any, tmp_path: Path) -> None:
    fetch("s3://weights/models/", tmp_path, s3)

    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"vae/wan.safetensors", "checkpoints/sd15/a.safetensors"}
    assert (tmp_path / "vae" / "wan.safetensors").read_bytes() == b"v" * 10


def test_second_run_copies_only_what_is_missing_or_cut_short(s3: Any, tmp_path: Path) -> None:
    fetch("s3://weights/models", tmp_path, s3)
    (tmp_path / "vae" / "wan.safetensors").write_bytes(b"v")

    copied = fetch("s3://weights/models", tmp_path, s3)

    assert [weight.path.name for weight in copied] == ["wan.safetensors"]
    assert (tmp_path / "vae" / "wan.safetensors").read_bytes() == b"v" * 10


def test_weights_that_do_not_fit_are_not_begun(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_models, "RESERVE_BYTES", 10**18)

    with pytest.raises(FetchError, match="do not fit"):
        fetch("s3://weights/models/", tmp_path, s3)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["s3://weights/nothing/", "https://weights/models", "models"])
def test_wrong_address_says_what_is_wrong(uri: str, s3: Any, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"check ModelsBucket|expected s3://"):
        fetch(uri, tmp_path, s3)


def test_key_that_leads_out_of_the_folder_is_refused(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="weights", Key="models/../../escaped", Body=b"x")

    with pytest.raises(FetchError, match="leads out"):
        fetch("s3://weights/models/", tmp_path / "target", s3)


def test_without_an_address_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS_S3_URI", " ")

    assert fetch_models.main() == 0


@pytest.mark.usefixtures("s3")
def test_command_takes_both_places_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS_S3_URI", "s3://weights/models/")
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "models"))

    assert fetch_models.main() == 0
    assert (tmp_path / "models" / "vae" / "wan.safetensors").is_file()


@pytest.mark.usefixtures("s3")
def test_failure_is_an_exit_status_that_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELS_S3_URI", "s3://no-such-bucket/models/")
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))

    assert fetch_models.main() == 1
    assert "NoSuchBucket" in capsys.readouterr().err
