"""What the router takes of a report: a worker cannot take all work, or write into the log."""

import math
from typing import Any

import pytest

from runtime.fleet.protocol import BadBodyError, status_call
from runtime.fleet.registry import Report

REPORT = {"id": 1, "url": "http://10.0.0.21:18288/worker/", "max_perf": 2.0}


def reported(**fields: Any) -> Report:
    report = status_call(REPORT | fields).report
    assert report
    return report


@pytest.mark.parametrize("score", [1e308, 1.1e6, 9e-7, 5e-324, math.inf, math.nan, 10**400])
def test_score_that_no_worker_has_is_refused(score: float) -> None:
    with pytest.raises(BadBodyError, match=r"^max_perf: expected"):
        status_call(REPORT | {"max_perf": score})


def test_negative_score_is_none() -> None:
    assert reported(max_perf=-1.0).score == 0.0


@pytest.mark.parametrize("seconds", [-1.0, 3601.0])
def test_cold_start_that_no_worker_has_is_refused(seconds: float) -> None:
    with pytest.raises(BadBodyError, match=r"^cold_start_s: expected a number from 0 to 3600$"):
        status_call(REPORT | {"cold_start_s": seconds})


def test_address_may_have_a_port_and_a_path() -> None:
    assert reported().url == "http://10.0.0.21:18288/worker"
    assert reported(url="https://[fd00::1]:443").url == "https://[fd00::1]:443"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://worker",
        "http://",
        "http:///path",
        "http://worker:port",
        "http://worker:0",
        "http://[worker",
        "http://user:secret@worker",
        "http://worker/?to=",
        "http://worker/#",
        "http://worker\nrouter: worker 2 has joined",
        "http://worker\x1b[2J",
        "http://wörker",
        "http://-oProxyCommand=x",
        "http://w" + "o" * 2000,
    ],
)
def test_address_with_more_than_a_host_and_a_path_is_refused(url: str) -> None:
    with pytest.raises(BadBodyError, match=r"^url: expected the http or https address"):
        status_call(REPORT | {"url": url})


def test_worker_with_more_gpus_than_a_machine_has_is_refused() -> None:
    with pytest.raises(BadBodyError, match=r"^places: expected the number of GPUs, 64 at most$"):
        status_call(REPORT | {"places": 65})


def test_name_of_a_gpu_is_one_line() -> None:
    (benchmarked,) = reported(
        benchmarks=[{"gpu": "H100\n" + "!" * 300, "workflow_hash": "a", "score": 1.0}]
    ).benchmarks

    assert benchmarked.gpu == "H100 " + "!" * 195


def test_list_of_requests_is_bounded() -> None:
    with pytest.raises(BadBodyError, match=r"^working_request_idxs: expected a list of 2000"):
        status_call(REPORT | {"working_request_idxs": list(range(2001))})


def test_error_of_a_worker_is_one_line() -> None:
    report = reported(max_perf=0, error_msg="no GPU\nrouter: all is well\x1b[2J" + "!" * 1000)

    assert report.error.startswith("no GPU router: all is well [2J!")
    assert len(report.error) == 500
