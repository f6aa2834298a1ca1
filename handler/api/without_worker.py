"""What a dispatcher answers that has no worker on its machine, and cannot stream: a function."""

from collections.abc import AsyncIterator

from handler.api.dispatcher import Health, LiveEvent, NotOffered, WorkerReport


class WithoutWorker:
    """The part that the dispatchers of functions have in common."""

    can_stream = False

    async def events(self, request_id: str, after: str) -> AsyncIterator[LiveEvent | None]:
        raise NotOffered("a function cannot stream events; ask GET /result/{id} instead")
        yield None  # type: ignore[unreachable]

    def queue_position(self, request_id: str) -> int | None:
        return None

    def waiting(self) -> int | None:
        return None

    def cost(self) -> float | None:
        return None

    async def worker(self) -> WorkerReport | None:
        return None

    async def health(self) -> Health:
        # It answers, and Lambda replaces an environment that cannot work.
        return Health(is_healthy=True, is_ready=True)
