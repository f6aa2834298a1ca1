"""Manifests are checked when they are read, and written for the models of a workflow."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from handler.settings import PROJECT, Settings
from runtime import cli
from runtime.models.errors import ManifestError
from runtime.models.manifest import (
    SHIPPED,
    ModelFile,
    configured_manifests,
    find_file,
    find_manifest,
    read_manifest,
)
from runtime.models.merged_files import merged_files
from runtime.models.supply import ModelSupply

SAMPLE = PROJECT / "events" / "samples" / "direct_wan22_t2v.json"
GIVEN: dict[str, Any] = {
    "file": "sub/a.safetensors",
    "folder": "vae",
    "size": 7,
    "sha256": "0" * 64,
    "sources": ["s3://b/a", "hf://o/r@v/a", "https://h/a"],
    "licence": "MIT",
    "needed_by": "a test",
}


def write(path: Path, *files: Any, **more: Any) -> Path:
    path.write_text(yaml.safe_dump({"name": "mine", "files": list(files), **more}))
    return path


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_manifests_have_sizes_hashes_and_licences(path: Path) -> None:
    manifest = read_manifest(path, Settings())

    assert manifest.name == path.stem
    assert all(file.size_bytes and file.sha256 and file.licence for file in manifest.files)


def test_shipped_wan_manifest_has_the_files_of_the_documented_profile() -> None:
    manifest = read_manifest(find_manifest("wan2.2-t2v-a14b"), Settings())

    assert [f"{file.folder}/{file.name}" for file in manifest.files] == [
        "vae/wan_2.1_vae.safetensors",
        "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "diffusion_models/wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
        "diffusion_models/wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors",
        "loras/wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors",
        "loras/wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors",
    ]
    assert sum(file.size_bytes or 0 for file in manifest.files) == 38_031_524_327


def test_fields_of_a_file_are_read(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path / "m.yaml", GIVEN), Settings())

    expected = ModelFile(
        name="sub/a.safetensors",
        folder="vae",
        sources=("s3://b/a", "hf://o/r@v/a", "https://h/a"),
        size_bytes=7,
        sha256="0" * 64,
        expected_bytes=7,
        licence="MIT",
        needed_by="a test",
    )
    assert manifest.files == (expected,)
    assert find_file([manifest], "vae", "sub/a.safetensors") == expected
    assert find_file([manifest], None, "sub/a.safetensors") == expected
    assert find_file([manifest], "loras", "sub/a.safetensors") is None


def test_unverified_values_are_not_relied_on(tmp_path: Path) -> None:
    given = GIVEN | {"unverified": ["size", "sha256"]}

    (file,) = read_manifest(write(tmp_path / "m.yaml", given), Settings()).files

    assert (file.size_bytes, file.sha256, file.expected_bytes) == (None, None, 7)


def test_copy_below_the_prefix_is_the_first_source(tmp_path: Path) -> None:
    settings = Settings(models_s3_uri="s3://mine/models/")

    (file,) = read_manifest(write(tmp_path / "m.yaml", GIVEN), settings).files

    assert file.sources[:2] == ("s3://mine/models/vae/sub/a.safetensors", "s3://b/a")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file": "../a"}, "files.0.file: expected the name that workflows use"),
        ({"file": "/etc/a"}, "files.0.file: expected the name that workflows use"),
        ({"file": "a/../../b"}, "files.0.file: expected the name that workflows use"),
        ({"file": "a/"}, "files.0.file: expected the name that workflows use"),
        ({"folder": ".."}, "files.0.folder: expected the name of a folder"),
        ({"folder": "a/b"}, "files.0.folder: expected the name of a folder"),
        ({"size": 0}, "files.0.size: expected the bytes of the file"),
        ({"size": "7 GB"}, "files.0.size: expected the bytes of the file"),
        ({"sha256": "abc"}, "files.0.sha256: expected 64 hexadecimal digits"),
        ({"sources": []}, "files.0.sources: expected a list of URLs"),
        ({"sources": ["ftp://s3cret@x/y"]}, "files.0.sources.0: expected s3://BUCKET/KEY"),
        ({"unverified": ["name"]}, "files.0.unverified.0: expected size, sha256 or licence"),
        ({"url": "https://x"}, "'url' was unexpected"),
    ],
)
def test_wrong_field_is_named_without_its_value(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.yaml", GIVEN | change)

    with pytest.raises(ManifestError) as raised:
        read_manifest(path, Settings())

    assert str(raised.value).startswith(f"{path}: ")
    assert said in str(raised.value)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("missing", ["file", "folder", "sources"])
def test_missing_field_is_named(missing: str, tmp_path: Path) -> None:
    given = {name: value for name, value in GIVEN.items() if name != missing}

    with pytest.raises(ManifestError, match=f"files.0: '{missing}' is a required property"):
        read_manifest(write(tmp_path / "m.yaml", given), Settings())


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "name: x\nfiles: 3", "\x00"])
def test_file_that_is_no_manifest_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(text)

    with pytest.raises(ManifestError, match=r"m\.yaml"):
        read_manifest(tmp_path / "m.yaml", Settings())


def test_syntax_error_is_shown_by_its_line_without_the_text(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("name: x\nfiles: [https://user:s3cret@x/y\n")

    with pytest.raises(ManifestError) as raised:
        read_manifest(tmp_path / "m.yaml", Settings())

    assert "m.yaml, line 3: expected ',' or ']'" in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_file_without_fields_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("- 1")

    with pytest.raises(ManifestError, match="the manifest: expected the fields name and files"):
        read_manifest(tmp_path / "m.yaml", Settings())


def test_unknown_manifest_names_those_that_are_shipped() -> None:
    with pytest.raises(ManifestError, match=r"no manifest nope: give sd15, wan2\.2-t2v-a14b, or"):
        configured_manifests(Settings(model_manifests=("sd15", "nope")))


PLAIN: dict[str, Any] = {"file": "a.safetensors", "folder": "vae", "sources": ["https://h/a"]}


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"sha256": "0" * 64}, {"sha256": "1" * 64}, f"sha256 {'0' * 64} and {'1' * 64}"),
        ({"size": 7}, {"size": 8}, "size 7 and 8"),
        ({}, {"sources": ["https://s3cret@h/b"]}, "without a common source"),
        ({"sha256": "0" * 64}, {"sources": ["https://h/b"]}, "without a common source"),
    ],
    ids=["hashes", "sizes", "sources", "hash-and-other-source"],
)
def test_two_manifests_that_contradict_each_other_are_an_error_with_both_names(
    first: dict[str, Any], second: dict[str, Any], said: str, tmp_path: Path
) -> None:
    paths = [
        write(tmp_path / "first.yaml", PLAIN | first),
        write(tmp_path / "second.yaml", PLAIN | second),
    ]
    settings = Settings(model_manifests=tuple(map(str, paths)), models_dirs=(tmp_path,))

    with pytest.raises(ManifestError) as raised:
        ModelSupply(settings, configured_manifests(settings))

    message = str(raised.value)
    assert message.startswith(f"vae/a.safetensors has two entries in {paths[0]} and {paths[1]}, ")
    assert said in message
    assert "s3cret" not in message


def test_one_manifest_that_contradicts_itself_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "m.yaml", PLAIN | {"size": 7}, PLAIN | {"size": 8})
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "models"))

    assert cli.main(["provision", str(path)]) == 2

    assert f"vae/a.safetensors has two entries in {path}, with size 7" in capsys.readouterr().err


def test_entries_that_agree_are_one_file_with_what_each_of_them_says(tmp_path: Path) -> None:
    other = PLAIN | {"file": "b.safetensors"}
    first = write(tmp_path / "first.yaml", PLAIN | {"size": 7, "sha256": "0" * 64}, other)
    second = write(
        tmp_path / "second.yaml", PLAIN | {"sha256": "0" * 64, "sources": ["https://h/copy"]}
    )
    third = write(tmp_path / "third.yaml", PLAIN | {"licence": "MIT"})

    files = merged_files(read_manifest(path, Settings()) for path in (first, second, third))

    assert [file.name for file in files] == ["a.safetensors", "b.safetensors"]
    assert files[0].sources == ("https://h/a", "https://h/copy")
    assert (files[0].size_bytes, files[0].sha256, files[0].licence) == (7, "0" * 64, "MIT")


def test_size_that_nobody_has_verified_contradicts_nothing(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.yaml", PLAIN | {"size": 8, "unverified": ["size"]}, PLAIN | {"size": 7}
    )

    (file,) = merged_files([read_manifest(path, Settings())])

    assert file.size_bytes == 7


def test_manifest_of_an_event_has_the_known_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["manifest", str(SAMPLE)]) == 0

    written = yaml.safe_load(capsys.readouterr().out)
    assert [file["folder"] for file in written["files"]] == [
        "text_encoders",
        "vae",
        "diffusion_models",
        "diffusion_models",
    ]
    assert all(file["sha256"] for file in written["files"])


def test_written_manifest_can_be_read_and_says_what_was_not_placed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workflow = {
        "1": {"class_type": "LoraLoader", "inputs": {"lora_name": "mine.safetensors"}},
        "2": {"class_type": "SomebodysNode", "inputs": {"thing": "x.gguf", "text": "a cat"}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "wan_2.1_vae.safetensors"}},
    }
    (tmp_path / "w.json").write_text(json.dumps(workflow))
    out = tmp_path / "w.yaml"

    assert cli.main(["manifest", str(tmp_path / "w.json"), "--out", str(out)]) == 1

    (file,) = read_manifest(out, Settings()).files
    assert file.name == "wan_2.1_vae.safetensors"
    missing = yaml.safe_load(out.read_text())["not_found"]
    assert missing == [
        "loras/mine.safetensors (node 1, LoraLoader): no source is known",
        "x.gguf (node 2, SomebodysNode): its folder is not known",
    ]
    shown = capsys.readouterr().err
    assert all(f"not placed: {text}; add it to `files`" in shown for text in missing)


def test_prefix_is_a_source_of_what_no_manifest_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workflow = {"1": {"class_type": "LoraLoader", "inputs": {"lora_name": "mine.safetensors"}}}
    (tmp_path / "w.json").write_text(json.dumps(workflow))
    monkeypatch.setenv("MODELS_S3_URI", "s3://b/p/")

    assert cli.main(["manifest", str(tmp_path / "w.json")]) == 0

    (file,) = yaml.safe_load(capsys.readouterr().out)["files"]
    assert file["sources"] == ["s3://b/p/loras/mine.safetensors"]


def test_model_by_its_url_is_left_to_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "https://huggingface.co/OWNER/REPO/resolve/main/some.safetensors"
    workflow = {"1": {"class_type": "VAELoader", "inputs": {"vae_name": url}}}
    (tmp_path / "w.json").write_text(json.dumps(workflow))
    monkeypatch.setenv("MODELS_S3_URI", "s3://b/p/")

    assert cli.main(["manifest", str(tmp_path / "w.json")]) == 0

    assert yaml.safe_load(capsys.readouterr().out) == {"name": "w", "files": []}


def test_urls_that_the_editor_saves_are_sources_also_in_subgraphs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = {
        "id": 7,
        "type": "VAELoader",
        "properties": {
            "models": [
                {
                    "name": "v.safetensors",
                    "url": "https://h/v.safetensors",
                    "directory": "vae",
                    "hash": "A" * 64,
                    "hash_type": "SHA256",
                }
            ]
        },
    }
    saved = {"nodes": [], "definitions": {"subgraphs": [{"nodes": [loader, loader]}]}}
    (tmp_path / "w.json").write_text(json.dumps(saved))

    assert cli.main(["manifest", str(tmp_path / "w.json")]) == 0

    assert yaml.safe_load(capsys.readouterr().out)["files"] == [
        {
            "file": "v.safetensors",
            "folder": "vae",
            "sha256": "a" * 64,
            "sources": ["https://h/v.safetensors"],
            "needed_by": "node 7, VAELoader",
        }
    ]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"1": {"class_type": "X"}}'])
def test_file_that_is_no_workflow_is_a_usage_error(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.json").write_text(text)

    assert cli.main(["manifest", str(tmp_path / "w.json")]) == 2
    assert str(tmp_path / "w.json") in capsys.readouterr().err


def test_example_in_the_guide_is_a_manifest(tmp_path: Path) -> None:
    guide = (PROJECT / "docs" / "models.md").read_text()
    example = guide.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "m.yaml").write_text(example)

    assert len(read_manifest(tmp_path / "m.yaml", Settings()).files) == 1
