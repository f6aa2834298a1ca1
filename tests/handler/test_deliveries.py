"""Which jobs the handler records as delivered: answered, and every file in the bucket."""

import os
from pathlib import Path

import pytest

from handler import deliveries
from handler.artifacts import MARKER
from handler.deliveries import Delivery
from handler.settings import Settings
from runtime.local_s3 import LocalS3
from tests import workflows
from tests.conftest import run
from tests.handler.test_storage import s3_fields
from tests.workflows import node

pytestmark = [
    pytest.mark.usefixtures("comfyui"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def delivery_of(request_id: str) -> Delivery | None:
    entries = deliveries.read_all(Settings.from_env(os.environ).worker_dir)
    return next((entry for entry in entries if entry.folder == request_id), None)


def test_job_with_all_files_in_the_bucket_is_delivered_with_its_previews(s3: LocalS3) -> None:
    workflow = workflows.image("sub/delivered") | {"3": node("PreviewImage", images=["1", 0])}

    response = run(workflow, request_id="delivered", s3=s3_fields(s3))

    (item,) = response["output"]
    delivery = delivery_of("delivered")
    assert delivery is not None
    saved, preview = sorted(delivery.files)
    assert saved == f"output/sub/{item['filename']}"
    assert preview.startswith("temp/ComfyUI_temp_")
    # A file is removed only if nothing has used it since.
    assert Path(item["local_path"]).stat().st_mtime <= delivery.at


def test_job_without_a_bucket_is_not_delivered() -> None:
    run(workflows.image(), request_id="kept-here")

    assert delivery_of("kept-here") is None


def test_job_whose_upload_failed_is_not_delivered(s3: LocalS3) -> None:
    wrong = s3_fields(s3) | {"secret_access_key": "wrong"}

    response = run(workflows.image(), request_id="refused", s3=wrong)

    assert response["error"]["type"] == "UploadFailed"
    assert delivery_of("refused") is None


def test_folder_of_an_id_that_comes_again_counts_as_new(s3: LocalS3) -> None:
    response = run(workflows.image(), request_id="again", s3=s3_fields(s3))
    marker = Path(response["output"][0]["local_path"]).parent / MARKER
    os.utime(marker, (0, 0))
    first = delivery_of("again")
    assert first is not None

    run(workflows.image(), request_id="again")

    assert marker.stat().st_mtime > first.at
