"""How much memory this process may still use, of the machine and of its container."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

# A limit that is not set is written as a number near 2**63 in version 1.
_NO_LIMIT = 1 << 60


# The page cache in `memory.stat`, without and with the prefix of version 1: what was not used
# lately, which the kernel drops first, and what was.
_UNUSED_CACHE = frozenset({"inactive_file", "total_inactive_file"})
_USED_CACHE = frozenset({"active_file", "total_active_file"})


def available_bytes(
    proc: Path = Path("/proc"),
    cgroups: Path = Path("/sys/fs/cgroup"),
    *,
    with_used_cache: bool = False,
) -> int:
    """The bytes that can be had without swapping, page cache that can be dropped included.

    The least of what the machine and each control group around this process leave: proc(5),
    https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html. The page cache of
    a group counts if it was not used lately; `with_used_cache`, all of it does.
    """
    droppable = _UNUSED_CACHE | _USED_CACHE if with_used_cache else _UNUSED_CACHE
    left = (limit - used for limit, used in _groups(proc, cgroups, droppable))
    return max(min([_of_machine(proc, "MemAvailable:"), *left]), 0)


def total_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """The least of the machine's memory and the limits of the groups around this process."""
    limits = (limit for limit, _ in _groups(proc, cgroups, frozenset()))
    return min([_of_machine(proc, "MemTotal:"), *limits])


def _of_machine(proc: Path, name: str) -> int:
    lines = (proc / "meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def _groups(proc: Path, cgroups: Path, droppable: frozenset[str]) -> Iterator[tuple[int, int]]:
    """The limit of each group that has one, and what is used of it and not `droppable`."""
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit, used = cgroups, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, used = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        # In a container the path may be that of the host: then the group is the root.
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):
                if (most := int((folder / limit).read_text())) < _NO_LIMIT:
                    yield most, int((folder / used).read_text()) - _bytes_of(droppable, folder)
            if folder == root:
                break


def _bytes_of(names: frozenset[str], group: Path) -> int:
    """The sum of these lines of the group's `memory.stat`.

    Version 1 has each twice; `total_` is the one with the groups below, as the limit counts.
    """
    lines = (line.partition(" ") for line in (group / "memory.stat").read_text().splitlines())
    values = {name: int(value) for name, _, value in lines if name in names}
    totals = {name: value for name, value in values.items() if name.startswith("total_")}
    return sum((totals or values).values())
