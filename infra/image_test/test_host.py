"""The image of the target `host`, without a network, as several users."""

import pytest

from infra.image_test.containers import HOST, NO_NETWORK, READ_ONLY, podman, running
from infra.image_test.jobs import check_completed, small_job

API = "http://127.0.0.1:18288"
LEAST = ("--cap-drop", "all", "--security-opt", "no-new-privileges")
GRACE_S = 30
# What podman itself makes in every container.
OF_PODMAN = ("/dev", "/etc", "/proc", "/run", "/sys", "/var", "/var/run")


@pytest.mark.parametrize("user", ["65534:65534", "993:990", "12345:12345"])
def test_any_user_runs_a_job_with_tmp_alone_and_sigterm_ends_it(user: str) -> None:
    with running(HOST, *READ_ONLY, *NO_NETWORK, *LEAST, "--user", user) as host:
        check_completed(host.post(f"{API}/generate/sync", small_job("host")), "x_00001_.png")
        with pytest.raises(Exception, match="Read-only file system"):
            host.execute("touch", "/opt/x")

        stop = host.stop(GRACE_S + 10)

        print(f"SIGTERM: status {stop.status} after {stop.seconds:.1f} s")
        assert stop.status == 0, host.log()
        assert stop.seconds < GRACE_S


def test_nothing_is_written_outside_tmp() -> None:
    """The root file system can be written here, so that an attempt would be seen."""
    with running(HOST, *NO_NETWORK) as host:
        check_completed(host.post(f"{API}/generate/sync", small_job("diff")), "x_00001_.png")
        host.stop(GRACE_S)

        lines = podman("diff", host.name).splitlines()

    changed = {line.split(maxsplit=1)[1] for line in lines}
    outside = {path for path in changed if path != "/tmp" and not path.startswith("/tmp/")}
    print(f"podman diff: {len(changed)} paths, outside of /tmp: {sorted(outside) or 'none'}")
    assert {path for path in outside if path not in OF_PODMAN} == set()
