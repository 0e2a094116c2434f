"""How much memory a worker may take for rows, and what it keeps within that."""

import os
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

SHARE: Final = 0.6
"""Of a node's memory, that its workers take for rows where the job does not say how much."""

UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
"""Bytes of each unit, in small letters: nobody means bits by them."""

K = TypeVar("K", bound=Hashable)


def parse_size(text: str) -> int | None:
    """Return the bytes of a size such as "400 MB" or "1.5 GiB"; None where it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].lower() not in UNITS:
        return None
    return int(float(found[1]) * UNITS[found[2].lower()])


def written_size(amount: float) -> str:
    """Return bytes in the unit that keeps the number short."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.3g} TB"


def node_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that the processes of this container, or else of this machine, may take together."""
    pages: int = os.sysconf("SC_PHYS_PAGES")
    limits = [pages * os.sysconf("SC_PAGE_SIZE")]
    for file in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = (root / file).read_text().strip()
        except OSError:
            continue
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def memory_limit(given: int | None, share: float) -> int:
    """Return the bytes that the rows of a worker may take.

    Args:
        given: what the job says; None leaves it to the node.
        share: of what the workers of a node may take, that is this one's.
    """
    return int(SHARE * share * node_memory()) if given is None else given


@dataclass(frozen=True)
class Need:
    """What some rows take in memory: all of them, or while they are streamed. `must` tells of those that can't be streamed."""

    kept: int
    streamed: int
    must: bool = False

    @property
    def least(self) -> int:
        """What they take at least."""
        return self.kept if self.must else min(self.kept, self.streamed)


def choose_kept(needs: Mapping[K, Need], limit: int) -> tuple[set[K], int]:
    """Return which rows to keep in memory, the first ones first, and how much of the limit is left with all that they take."""
    kept = {key for key, need in needs.items() if need.must}
    left = limit - sum(need.least for need in needs.values())
    for key, need in needs.items():
        more = need.kept - need.least
        if key not in kept and more <= left:
            kept.add(key)
            left -= more
    return kept, left
