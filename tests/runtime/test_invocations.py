"""The queue of invocations, when clients die or the host stops at the worst moment."""

import threading
from concurrent.futures import ThreadPoolExecutor

from runtime.lambda_host.failures import UNAVAILABLE
from runtime.lambda_host.invocations import Gate, Invocation, InvocationQueue, QueueConsumer
from tests.processes import wait_until


def test_client_that_died_after_it_had_asked_gets_no_invocation() -> None:
    queue, gate = InvocationQueue(1), Gate(is_open=True)
    dead, invocation = QueueConsumer(gate), Invocation(b"{}", 60)
    queue.put(invocation)
    queue.retire(dead)

    assert queue.take(dead) is None
    assert queue._free() == []
    assert queue.take(QueueConsumer(gate)) is invocation


def test_clients_of_an_environment_that_is_not_replaced_are_not_counted_as_free() -> None:
    queue = InvocationQueue(2)
    queue.remove_clients(1)

    assert queue.put(Invocation(b"{}", 60), limit=0)
    assert not queue.put(Invocation(b"{}", 60), limit=0)


def test_invocation_of_a_client_that_dies_before_it_runs_goes_to_another_one() -> None:
    queue, gate = InvocationQueue(2), Gate(is_open=True)
    dying, invocation = QueueConsumer(gate), Invocation(b"{}", 60)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(queue.take, dying)
        assert wait_until(lambda: bool(queue._free()))
        # The thread of the client cannot run meanwhile.
        with queue.changed:
            queue.put(invocation)
            queue.retire(dying)
        assert taken.result() is None

    assert queue.take(QueueConsumer(gate)) is invocation


def test_invocation_of_a_client_that_dies_while_the_host_stops_ends_as_unavailable() -> None:
    queue = InvocationQueue(1)
    dying, invocation = QueueConsumer(Gate(is_open=True)), Invocation(b"{}", 60)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(queue.take, dying)
        assert wait_until(lambda: bool(queue._free()))
        with queue.changed:
            queue.put(invocation)
            queue.close()
            queue.retire(dying)
        assert taken.result() is None

    assert invocation.result is not None
    assert invocation.result.function_error == UNAVAILABLE.error_type


def test_free_client_is_reserved_once() -> None:
    queue, consumer = InvocationQueue(1), QueueConsumer(Gate(is_open=True))
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(queue.take, consumer)

        assert queue.reserve(30)
        assert not queue.reserve(0)
        queue.unreserve()
        assert queue.reserve(0)

        queue.put(Invocation(b"{}", 60))
        assert taken.result() is not None
        queue.unreserve()
        assert not queue.reserve(0)


def test_invocation_that_others_will_take_does_not_end_the_pause_of_an_environment() -> None:
    queue = InvocationQueue(1)
    queue.put(Invocation(b"{}", 60))
    others_fail = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        paused = pool.submit(
            queue.wait_until_needed, 60, or_until=lambda: False, is_needed=others_fail.is_set
        )
        assert not wait_until(paused.done, 0.2)
        others_fail.set()
        with queue.changed:
            queue.changed.notify_all()
        assert paused.result(30)


def test_models_of_a_busy_client_count_while_no_other_one_is_free() -> None:
    queue = InvocationQueue(1)
    running = Invocation(b'{"vae_name": "a.safetensors"}', 60)
    queue.put(running)
    consumer = QueueConsumer(Gate(is_open=True))

    assert queue.next_models() == []
    assert queue.take(consumer) is running

    assert queue.next_models() == [frozenset({"a.safetensors"})]
