"""A signal is noticed though another thread takes it, as one that starts threads does."""

import signal
import subprocess
import sys

import pytest

from handler.settings import PROJECT

# Prints "ready", and ends with 7 at SIGTERM. Without the wait's limit one in four hangs.
PROGRAM = """
import queue, signal, sys, threading
from runtime.process.signals import get_beside_signals, run_beside_signals

def start_threads():
    while True:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

stops = queue.SimpleQueue()
signal.signal(signal.SIGTERM, lambda *_: stops.put(7))
for _ in range(2):
    threading.Thread(target=start_threads, daemon=True).start()
print("ready", flush=True)
if sys.argv[1] == "queue":
    status = get_beside_signals(stops)
else:
    run_beside_signals(stops.get)
    status = 7
import os
os._exit(status)
"""


@pytest.mark.parametrize("way", ["queue", "thread"])
def test_signal_is_noticed_while_threads_are_started(way: str) -> None:
    for _ in range(8):
        line = [sys.executable, "-c", PROGRAM, way]
        with subprocess.Popen(line, cwd=PROJECT, stdout=subprocess.PIPE) as program:
            assert program.stdout
            assert program.stdout.readline() == b"ready\n"

            program.send_signal(signal.SIGTERM)

            try:
                assert program.wait(20) == 7
            finally:
                program.kill()


# Prints the number of the first stop signal, and goes on.
TWICE = """
import time
from runtime.process.signals import on_stop_signal

with on_stop_signal(lambda number: print(int(number), flush=True)):
    print("ready", flush=True)
    while True:
        time.sleep(1)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_first_stop_signal_calls_the_action_and_a_second_one_ends_the_process(
    first: signal.Signals,
) -> None:
    line = [sys.executable, "-c", TWICE]
    with subprocess.Popen(line, cwd=PROJECT, stdout=subprocess.PIPE) as program:
        assert program.stdout
        assert program.stdout.readline() == b"ready\n"
        program.send_signal(first)
        assert program.stdout.readline() == b"%d\n" % first

        program.send_signal(signal.SIGTERM)

        assert program.wait(30) == -signal.SIGTERM
