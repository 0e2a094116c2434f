import os
from collections.abc import Callable, Iterator

import pytest

from cluster.shelf import Shelf
from worker.messages import Holdings
from worker.segments import Segment


@pytest.fixture
def shelf(shared: Callable[[], set[int]]) -> Iterator[Shelf]:
    """The shelf of a coordinator on the node "here", which must leave nothing open."""
    before = shared()
    shelf = Shelf("here")
    yield shelf
    shelf.close()
    assert not shared() - before


def segments(count: int) -> list[Segment]:
    return [Segment.create(8, None) for _ in range(count)]


def inodes(shelf: Shelf, node: str, *shards: int) -> dict[int, int]:
    return {shard: handle.inode for (shard, _), handle in shelf.found(node, shards).items()}


def holdings(**rows: Segment) -> Holdings:
    """Returns training rows of shards: s3 for shard 3."""
    return {(int(name[1:]), "train"): segment.handle for name, segment in rows.items()}


def test_rows_are_found_on_their_node_alone(shelf: Shelf) -> None:
    one, two, far = segments(3)
    shelf.tell(0, "here", holdings(s0=one, s1=two))
    shelf.tell(1, "there", holdings(s1=far))

    assert inodes(shelf, "here", 0, 1, 2) == {0: one.handle.inode, 1: two.handle.inode}
    assert inodes(shelf, "there", 0, 1, 2) == {1: far.handle.inode}
    assert inodes(shelf, "here", 1) == {1: two.handle.inode}


def test_rows_of_this_node_outlive_their_worker(shelf: Shelf) -> None:
    [segment] = segments(1)
    inode = segment.handle.inode
    shelf.tell(0, "here", holdings(s0=segment))
    del segment
    shelf.forget(0)

    [handle] = shelf.found("here", [0]).values()
    attached = Segment.attach(handle, 8)
    assert handle.pid == os.getpid() and attached is not None and attached.handle.inode == inode


def test_rows_that_the_last_worker_lets_go_of_are_let_go_of(shelf: Shelf) -> None:
    one, two = segments(2)
    shelf.tell(0, "here", holdings(s0=one, s1=two))
    shelf.tell(1, "here", holdings(s1=two))
    shelf.tell(0, "here", holdings(s0=one))
    assert set(inodes(shelf, "here", 0, 1)) == {0, 1}

    shelf.tell(1, "here", {})
    assert set(inodes(shelf, "here", 0, 1)) == {0}


def test_rows_that_were_read_again_take_the_place_of_those_before(shelf: Shelf) -> None:
    one, two = segments(2)
    shelf.tell(0, "here", holdings(s0=one))
    shelf.forget(0)
    shelf.tell(1, "here", holdings(s0=two))

    assert inodes(shelf, "here", 0) == {0: two.handle.inode}


def test_rows_whose_worker_is_gone_before_they_are_opened_are_none(shelf: Shelf) -> None:
    [segment] = segments(1)
    told = holdings(s0=segment)
    del segment
    shelf.tell(0, "here", told)

    assert inodes(shelf, "here", 0) == {}
