"""No secret is in the images, neither in a file nor in their configuration."""

import re

from infra.image_test.containers import HOST, LAMBDA, podman
from infra.image_test.test_contents import IMAGES, shell

SECRETS = {
    "AWS key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{20})",
    "GitLab token": r"\bglpat-[A-Za-z0-9_-]{20}",
    "Hugging Face token": r"\bhf_[A-Za-z]{34}\b",
    "Slack token": r"\bxox[abprs]-[0-9A-Za-z-]{10}",
    "Google key": r"\bAIza[0-9A-Za-z_-]{35}",
    "PyPI token": r"\bpypi-AgEI[A-Za-z0-9_-]{50}",
    "npm token": r"\bnpm_[A-Za-z0-9]{36}",
}
FOLDERS = "/etc /home /opt /root /srv /usr/local /var/runtime /var/task"
# The key that ComfyUI's frontend sends to Firebase from every browser, examples of AWS, and the
# lines between which a library looks for a key.
PUBLIC = re.compile(
    r"/comfyui_frontend_package/static/assets/[^/]+\.js(\.map)?$"
    r"|/boto3/examples/|/botocore/data/.*/examples-1\.json$"
    r"|/cryptography/hazmat/primitives/serialization/ssh\.py$"
)


@IMAGES
def test_no_file_holds_a_secret(image: str) -> None:
    pattern = "|".join(SECRETS.values())

    found = shell(image, f"LC_ALL=C grep -rIlE -e '{pattern}' {FOLDERS} 2>/dev/null || true")

    assert [path for path in found.splitlines() if not PUBLIC.search(path)] == []


def test_no_secret_is_in_the_configuration_or_the_history() -> None:
    for image in (LAMBDA, HOST):
        text = podman("image", "inspect", image)
        text += podman("history", "--no-trunc", "--format", "json", image)

        assert re.search("|".join(SECRETS.values()), text) is None
