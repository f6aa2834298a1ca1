"""What the faults of a machine say about it: recover, or be unfit."""

import pytest

from runtime.worker import soundness
from runtime.worker.soundness import Soundness


def test_one_fault_costs_one_recovery() -> None:
    machine = Soundness()

    machine.note_fault("job-1", "the disk is full")
    is_recovering_before = machine.is_recovering
    machine.note_start()

    assert (is_recovering_before, machine.is_recovering) == (True, False)
    assert machine.unfit_reason == ""


def test_fault_of_another_job_right_after_a_recovery_makes_the_machine_unfit() -> None:
    machine = Soundness()
    machine.note_fault("job-1", "CUDA error\nmore")
    machine.note_start()

    machine.note_fault("job-2", "CUDA error\nmore")

    assert machine.unfit_reason == "CUDA error. A job before it: CUDA error"


def test_fault_of_the_same_job_says_nothing_about_the_machine() -> None:
    machine = Soundness()
    for _ in range(3):
        machine.note_fault("job-1", "CUDA error")
        machine.note_start()

    assert machine.unfit_reason == ""


def test_job_that_completes_makes_the_faults_before_it_count_no_more() -> None:
    machine = Soundness()
    machine.note_fault("job-1", "CUDA error")
    machine.note_start()
    machine.note_completed_job()

    machine.note_fault("job-2", "CUDA error")

    assert machine.unfit_reason == ""


def test_recovery_that_takes_too_long_makes_the_machine_unfit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Soundness()
    machine.note_fault("job-1", "the disk is full")
    machine.note_failed_start("the first start\nits last line")
    assert machine.unfit_reason == ""
    assert machine.pause_s() > 0

    monkeypatch.setattr(soundness, "RECOVER_WITHIN_S", 0.0)
    machine.note_fault("job-1", "the disk is full")
    machine.note_failed_start("the first start\nits last line")
    assert machine.unfit_reason == ""
    machine.note_failed_start("the second start\nits last line")

    assert machine.unfit_reason == "the disk is full. After a restart: its last line"
