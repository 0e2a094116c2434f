import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.memory import Need, choose_kept, node_memory, parse_size, written_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("400 MB", 400_000_000),
        ("400MB", 400_000_000),
        ("1.5 GiB", 3 << 29),
        ("2 kB", 2000),
        ("7", 7),
        (" 7 B ", 7),
        ("0 MB", 0),
        ("MB", None),
        ("-1 MB", None),
        ("4 mb", 4_000_000),
        ("400 KB", 400_000),
        ("2 gib", 2 << 30),
        ("4 Gigabytes", None),
        ("1e9", None),
        ("", None),
    ],
)
def test_sizes_are_read_with_their_units(text: str, expected: int | None) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("amount", "written"),
    [(0, "0 B"), (7, "7 B"), (999.7, "1 kB"), (12_345, "12.3 kB"), (999_600_000, "1 GB"), (7.58e9, "7.58 GB"), (1e13, "10 TB")],
)
def test_sizes_are_written_in_few_digits(amount: float, written: str) -> None:
    assert written_size(amount) == written


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("memory.max", "12345\n", 12345),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "54321\n", 54321),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("other", "1\n", None),
    ],
)
def test_a_container_has_what_it_is_limited_to_and_else_the_machine_all_it_has(
    tmp_path: Path, file: str, text: str, expected: int | None
) -> None:
    path = tmp_path / "sys/fs/cgroup" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)

    found = node_memory(tmp_path)

    assert found == (expected or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


NEEDS = st.lists(st.builds(Need, st.integers(0, 100), st.integers(0, 50)), max_size=8)


@given(needs=NEEDS, limit=st.integers(0, 500))
def test_rows_are_kept_as_far_as_everything_together_stays_within_the_limit(needs: list[Need], limit: int) -> None:
    numbered = dict(enumerate(needs))

    kept, left = choose_kept(numbered, limit)

    taken = sum(need.kept if number in kept else need.least for number, need in numbered.items())
    assert left == limit - taken
    assert left >= min(0, limit - sum(need.least for need in needs))
    # Whatever is not kept would not fit any more.
    assert all(need.kept - need.least > left for number, need in numbered.items() if number not in kept)


def test_the_first_rows_are_kept_before_others() -> None:
    needs = [Need(60, 10), Need(30, 10), Need(60, 10)]

    assert choose_kept(dict(enumerate(needs)), 110) == ({0, 1}, 10)
    assert choose_kept({2: needs[2], 1: needs[1], 0: needs[0]}, 110) == ({1, 2}, 10)
    assert choose_kept(dict(enumerate(needs)), 60) == ({1}, 10)


def test_rows_that_cannot_be_streamed_are_kept_whatever_they_take() -> None:
    needs = {"a": Need(60, 10), "b": Need(200, 10, must=True), "c": Need(5, 0)}

    assert choose_kept(needs, 100) == ({"b"}, -110)
    assert choose_kept(needs, 265) == ({"a", "b", "c"}, 0)
    assert choose_kept(needs, 215) == ({"b", "c"}, 0)
