"""What a process may use of the memory of its machine and its container."""

from pathlib import Path

from runtime.process.memory import available_bytes, total_bytes
from tests.runtime.test_prefetch import proc, write


def test_page_cache_that_was_used_lately_counts_only_for_who_wants_it(tmp_path: Path) -> None:
    group = tmp_path / "cgroup"
    write(group, {"memory.max": "5000000", "memory.current": "4000000"})
    write(group, {"memory.stat": "anon 1\nactive_file 1000000\ninactive_file 1500000\n"})
    machine = proc(tmp_path, "0::/\n")

    assert available_bytes(machine, group) == 2_500_000
    assert available_bytes(machine, group, with_used_cache=True) == 3_500_000


def test_page_cache_of_version_1_is_that_of_the_whole_group(tmp_path: Path) -> None:
    group = tmp_path / "cgroup" / "memory"
    write(group, {"memory.limit_in_bytes": "6000", "memory.usage_in_bytes": "1000"})
    stat = "inactive_file 1\nactive_file 2\ntotal_inactive_file 10\ntotal_active_file 200\n"
    write(group, {"memory.stat": stat})
    machine = proc(tmp_path, "4:memory:/\n")

    assert available_bytes(machine, tmp_path / "cgroup") == 5010
    assert available_bytes(machine, tmp_path / "cgroup", with_used_cache=True) == 5210


def test_memory_is_that_of_the_machine_or_the_least_limit_around_the_process(
    tmp_path: Path,
) -> None:
    outer, inner = tmp_path / "cgroup" / "a", tmp_path / "cgroup" / "a" / "b"
    machine = proc(tmp_path, "0::/a/b\n")

    assert total_bytes(machine, tmp_path / "cgroup") == 9000 * 1024
    write(outer, {"memory.max": "3000", "memory.current": "1000", "memory.stat": ""})
    write(inner, {"memory.max": "max", "memory.current": "500", "memory.stat": ""})
    assert total_bytes(machine, tmp_path / "cgroup") == 3000
