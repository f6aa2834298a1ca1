"""How much memory this process may still use, of the machine and of its container."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

# A limit that is not set is written as a number near 2**63 in version 1.
_NO_LIMIT = 1 << 60


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """The bytes that can be had without swapping, page cache that can be dropped included.

    The least of what the machine and each control group around this process leave: proc(5),
    https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
    """
    lines = (proc / "meminfo").read_text().splitlines()
    of_machine = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return max(min([of_machine * 1024, *_left_in_groups(proc, cgroups)]), 0)


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
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
                    yield most - int((folder / used).read_text()) + _droppable_bytes(folder)
            if folder == root:
                break


def _droppable_bytes(group: Path) -> int:
    """The page cache of a group that has not been used lately: the kernel drops it first."""
    for line in (group / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
