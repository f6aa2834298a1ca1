"""What follows a fault, a failed start or a death: the next state of the worker, and the reason."""

import pytest

from handler.worker_protocol import State
from runtime.worker import soundness
from runtime.worker.restart_policy import RestartPolicy, Verdict
from runtime.worker.start_failures import MAX_IN_A_ROW

EARLY_S = 0.0


def test_fault_restarts_comfyui_and_one_of_the_next_job_fails_the_worker() -> None:
    policy = RestartPolicy()

    first = policy.after_fault("job-1", "the disk is full")
    policy.note_start()
    second = policy.after_fault("job-2", "CUDA error")

    assert first == Verdict(State.STARTING, "the disk is full")
    assert second == Verdict(State.FAILED, "CUDA error. A job before it: the disk is full")


def test_failed_start_waits_for_the_next_event_until_there_are_too_many() -> None:
    policy = RestartPolicy()

    verdicts = [policy.after_failed_start("no disk", is_unfit=False) for _ in range(MAX_IN_A_ROW)]

    assert verdicts[:-1] == [Verdict(State.INACTIVE, "no disk")] * (MAX_IN_A_ROW - 1)
    assert verdicts[-1] == Verdict(State.FAILED, "no disk")
    assert policy.failures.failed_starts_ever == MAX_IN_A_ROW


def test_start_that_succeeds_makes_the_failed_ones_count_no_more() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_IN_A_ROW - 1):
        policy.after_failed_start("no disk", is_unfit=False)

    policy.note_start()

    assert policy.after_failed_start("no disk", is_unfit=False).state is State.INACTIVE


@pytest.mark.parametrize("has_fault", [False, True])
def test_unfit_device_fails_the_worker_at_once(has_fault: bool) -> None:
    policy = RestartPolicy()
    if has_fault:
        policy.after_fault("job-1", "CUDA error")

    verdict = policy.after_failed_start("the GPU is too old", is_unfit=True)

    assert verdict == Verdict(State.FAILED, "the GPU is too old")
    assert policy.soundness.unfit_reason == "the GPU is too old"


def test_failed_start_after_a_fault_is_tried_again_until_the_time_of_the_recovery_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soundness, "RECOVER_WITHIN_S", 0.0)
    policy = RestartPolicy()
    policy.after_fault("job-1", "the disk is full")

    first = policy.after_failed_start("self-test: no space", is_unfit=False)
    pause_s = policy.pause_s()
    second = policy.after_failed_start("self-test: no space", is_unfit=False)

    assert first == Verdict(State.STARTING, "self-test: no space")
    assert pause_s > 0
    assert second.state is State.FAILED
    assert second.reason == "the disk is full. After a restart: self-test: no space"
    assert policy.failures.last_reason == "self-test: no space"
    assert policy.failures.failed_starts_ever == 0


def test_deaths_without_a_job_fail_the_worker_when_they_are_too_many() -> None:
    policy = RestartPolicy()

    verdicts = [
        policy.after_death("killed", killed_by="", ran_s=EARLY_S, has_job=False)
        for _ in range(MAX_IN_A_ROW)
    ]

    assert verdicts[:-1] == [Verdict(State.STARTING, "killed")] * (MAX_IN_A_ROW - 1)
    assert verdicts[-1] == Verdict(State.FAILED, "killed")
    assert not policy.soundness.is_recovering


def test_deaths_with_a_job_never_fail_the_worker() -> None:
    policy = RestartPolicy()

    verdicts = [
        policy.after_death("killed", killed_by="prompt", ran_s=EARLY_S, has_job=True)
        for _ in range(2 * MAX_IN_A_ROW)
    ]

    assert verdicts == [Verdict(State.STARTING, "killed")] * (2 * MAX_IN_A_ROW)


def test_death_by_a_prompt_names_it_and_has_the_next_start_pass_the_self_test() -> None:
    policy = RestartPolicy()

    policy.after_death("killed", killed_by="prompt", ran_s=EARLY_S, has_job=True)

    assert policy.killed_by == "prompt"
    assert policy.soundness.is_recovering


def test_fault_after_a_death_names_no_prompt() -> None:
    policy = RestartPolicy()
    policy.after_death("killed", killed_by="prompt", ran_s=EARLY_S, has_job=True)

    policy.after_fault("job-1", "CUDA error")

    assert policy.killed_by == ""
    assert policy.failures.last_reason == "CUDA error"


@pytest.mark.parametrize(("is_ready", "state"), [(True, State.STARTING), (False, State.FAILED)])
def test_deaths_before_a_job_count_no_more_if_comfyui_survives_it(
    is_ready: bool, state: State
) -> None:
    policy = RestartPolicy()
    for _ in range(MAX_IN_A_ROW - 1):
        policy.after_death("killed", killed_by="", ran_s=EARLY_S, has_job=False)

    policy.note_end_of_job(has_completed=False, is_ready=is_ready)

    verdict = policy.after_death("killed", killed_by="", ran_s=EARLY_S, has_job=False)
    assert verdict.state is state


@pytest.mark.parametrize(
    ("has_completed", "state"), [(True, State.STARTING), (False, State.FAILED)]
)
def test_faults_before_a_job_count_no_more_if_it_completes(
    has_completed: bool, state: State
) -> None:
    policy = RestartPolicy()
    policy.after_fault("job-1", "CUDA error")
    policy.note_start()

    policy.note_end_of_job(has_completed=has_completed, is_ready=True)

    assert policy.after_fault("job-2", "CUDA error").state is state
