"""What wakes a coordinator, over real sockets."""

import socket
from collections.abc import Iterator
from functools import partial

import pytest

from cluster.waker import Waker

SECONDS = 60.0


class Ends:
    """Sockets by their number, with what a waker told of them."""

    def __init__(self, count: int) -> None:
        self.pairs = [socket.socketpair() for _ in range(count)]
        self.told: list[int] = []
        self.waker = Waker()
        for number, (ours, _) in enumerate(self.pairs):
            self.waker.add(ours.fileno(), partial(self.tell, number), always=number == 0)

    def tell(self, number: int) -> None:
        self.told.append(number)
        self.pairs[number][0].recv(100)

    def fileno(self, number: int) -> int:
        return self.pairs[number][0].fileno()

    def write(self, number: int) -> None:
        self.pairs[number][1].send(b"x")


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends(4)
    yield ends
    ends.waker.close()
    for pair in ends.pairs:
        for end in pair:
            end.close()


def test_one_that_always_wakes_does(ends: Ends) -> None:
    ends.write(0)
    ends.waker.wait(SECONDS)
    assert ends.told == [0]


def test_only_one_of_those_that_are_awaited_wakes(ends: Ends) -> None:
    awaited = [ends.fileno(2), ends.fileno(3)]
    ends.waker.await_one(awaited)
    ends.waker.await_one(awaited[::-1])  # the first will do
    for number in (1, 2, 3):
        ends.write(number)
    ends.waker.wait(SECONDS)
    ends.waker.wait(0.0)
    assert ends.told == [2]
    ends.waker.await_one([ends.fileno(3)])
    ends.waker.wait(SECONDS)
    assert ends.told == [2, 3]


def test_all_that_are_awaited_wake_until_none_is(ends: Ends) -> None:
    ends.waker.await_all([ends.fileno(1), ends.fileno(2)])
    for number in (1, 2, 3):
        ends.write(number)
    ends.waker.wait(SECONDS)
    assert sorted(ends.told) == [1, 2]
    ends.waker.await_all([])
    ends.write(1)
    ends.waker.wait(0.0)
    assert sorted(ends.told) == [1, 2]


def test_a_hang_up_wakes_whoever_is_awaited(ends: Ends) -> None:
    ends.waker.await_one([ends.fileno(2)])
    ends.pairs[3][1].close()
    ends.waker.wait(SECONDS)
    assert ends.told == [3]


def test_one_that_is_left_out_is_not_told_of_even_if_it_was_just_about_to_be(ends: Ends) -> None:
    def leave_out(one: int, other: int) -> None:
        ends.tell(one)
        if other not in ends.told:
            ends.waker.forget(ends.fileno(other))

    for one, other in ((1, 2), (2, 1)):
        ends.waker.forget(ends.fileno(one))
        ends.waker.add(ends.fileno(one), partial(leave_out, one, other), always=True)
        ends.write(one)
    ends.waker.wait(SECONDS)
    assert len(ends.told) == 1
