"""The image of the function under AWS's emulator, which is in it, in both of its modes."""

import pytest

from infra.image_test.containers import EMULATOR_URL, LAMBDA, NO_NETWORK, READ_ONLY, running
from infra.image_test.jobs import check_completed, small_job

# Lambda runs all as an unprivileged user. The emulator does so only for the code, in the mode
# of Managed Instances, and must be root for that.
LAMBDA_USER = ("--user", "993:990", "--cap-drop", "all")
MANAGED_INSTANCES = ("--env", "AWS_LAMBDA_MAX_CONCURRENCY=2")
GRACE_S = 30


@pytest.mark.parametrize(
    "mode",
    [(), LAMBDA_USER, MANAGED_INSTANCES],
    ids=["standard mode", "standard mode as Lambda's user", "Managed Instances"],
)
def test_job_completes_with_tmp_alone_and_sigterm_ends_it(mode: tuple[str, ...]) -> None:
    timeout = ("--env", "AWS_LAMBDA_FUNCTION_TIMEOUT=300")
    with running(LAMBDA, *READ_ONLY, *NO_NETWORK, *timeout, *mode) as function:
        response = function.post(EMULATOR_URL, small_job("emulator"))
        check_completed(response, "x_00001_.png")
        processes = function.execute(
            "sh", "-c", "for p in /proc/[0-9]*; do stat -c %u $p; done 2>/dev/null | sort -u"
        )
        print(f"users of the processes: {', '.join(processes.split())}")

        stop = function.stop(GRACE_S + 10)

        print(f"SIGTERM: status {stop.status} after {stop.seconds:.1f} s")
        assert stop.status != 137, function.log()
        assert stop.seconds < GRACE_S
        assert "extension: SHUTDOWN" in function.log()
