"""The exchange with workers on the coordinator's node: arrays in shared memory, and a tiny message on a local socket for a task.

The coordinator listens on an abstract Unix socket, which has no file; a worker connects when it is asked to, and is known by
its process id, which the kernel vouches for. A message is one packet.
"""

import os
import pickle
import secrets
import select
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Final

from cluster.arena import Arena, Terms, descriptors_of
from cluster.rounds import RunRounds, decode_rounds, encode_rounds, run_rounds
from coordinator.update import Updater
from worker.arrays import Floats
from worker.engine import Worker
from worker.messages import Answer, ComputeGradients, Evaluate
from worker.network import ErrorSums, GradientSum
from worker.tree import Node, first_member

RoundTask = ComputeGradients | Evaluate
Done = tuple[Answer, float]
"""An answer and the seconds it took."""

PACKET: Final = 1 << 17
"""Bytes of a message at most."""

SPIN_SECONDS: Final = 200e-6
"""How long a worker looks for the next task before it sleeps: about what the coordinator needs for a small update."""

_HEADER: Final = struct.Struct("<cBxxxxxxq")  # kind, which weights, round
# Level, index, 1 (-1: nothing), outputs; rows, weight, loss, absolute, squared, wrong.
_PART: Final = struct.Struct("<iiiiqddddd")
_ANSWER: Final = struct.Struct("<cxxxxxxxd")  # kind, seconds
_NOTHING: Final = -1


class Listener:
    """Where workers of this node connect."""

    def __init__(self) -> None:
        """Listen."""
        self.address = f"\0isograd-{secrets.token_hex(16)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._socket.bind(self.address)
        self._socket.listen(64)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def accept(self) -> tuple[int, "Link"] | None:
        """Return the process id of one that has connected, with the link to it; None where it is not one of this user's."""
        connected, _ = self._socket.accept()
        pid, user, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != os.getuid():
            connected.close()
            return None
        return pid, Link(connected)

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


class LinkLostError(ConnectionError):
    """The worker's end of a link is gone."""


class Link:
    """The coordinator's end of the exchange with one worker."""

    def __init__(self, connected: socket.socket) -> None:
        """Take a connected socket."""
        self._socket = connected
        self._socket.settimeout(0)
        self._arena: Arena | None = None

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def share(self, arena: Arena) -> None:
        """Give the worker the memory to work in."""
        self._arena = arena
        with suppress(ConnectionError):  # which reading from the link tells as well
            socket.send_fds(self._socket, [b"m"], arena.descriptors)

    def submit(self, task: RoundTask, place: int) -> None:
        """Send a task for the weights at this place among the shared ones."""
        self._send(encode_task(task, place))

    def run_rounds(self, task: RunRounds) -> None:
        """Have the worker run rounds with the others."""
        self._send(encode_rounds(task))

    def answer(self) -> Done | None:
        """Return the answer that has come, if one has, and how many seconds the worker took for it.

        Raises:
            LinkLostError: the worker is gone.
            Exception: whatever the worker raised.
        """
        assert self._arena is not None, "an answer to a task that was given"
        try:
            message = self._socket.recv(PACKET)
        except BlockingIOError:
            return None
        except OSError as error:
            raise LinkLostError from error
        if not message:
            raise LinkLostError
        return decode_answer(message, self._arena.sums)

    def await_end(self, seconds: float) -> bool:
        """Return whether the other end is gone within so many seconds: it is once no thread of that process runs any more."""
        waiting = select.poll()
        waiting.register(self._socket, 0)
        return bool(waiting.poll(1000 * seconds))

    def _send(self, message: bytes) -> None:
        with suppress(ConnectionError):  # which reading from the link tells as well
            self._socket.send(message)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def encode_task(task: RoundTask, place: int) -> bytes:
    """Return a task as a message."""
    match task:
        case ComputeGradients(number, shards):
            head = _HEADER.pack(b"g", place, number)
        case Evaluate("train", shards):
            head = _HEADER.pack(b"t", place, 0)
        case Evaluate("validation", shards):
            head = _HEADER.pack(b"v", place, 0)
    return head + struct.pack(f"<{len(shards)}i", *shards)


def decode_task(message: bytes) -> tuple[RoundTask, int]:
    """Return the task of a message, and the place of its weights."""
    kind, place, number = _HEADER.unpack_from(message)
    shards = struct.unpack_from(f"<{(len(message) - _HEADER.size) // 4}i", message, _HEADER.size)
    if kind == b"g":
        return ComputeGradients(number, shards), place
    return Evaluate("train" if kind == b"t" else "validation", shards), place


def encode_answer(answer: Mapping[Node, GradientSum | ErrorSums | None], seconds: float) -> bytes:
    """Return an answer as a message. The gradient sums themselves are where the worker was to put them."""
    kind = b"e"
    parts = []
    for (level, index), part in answer.items():
        errors = part
        if isinstance(part, GradientSum):
            kind, errors = b"g", part.errors
        if errors is None:
            parts.append(_PART.pack(level, index, _NOTHING, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0))
        else:
            assert isinstance(errors, ErrorSums)
            wrong = _NOTHING if errors.wrong is None else errors.wrong
            sums = (errors.outputs, errors.rows, errors.weight, errors.loss, errors.absolute, errors.squared, wrong)
            parts.append(_PART.pack(level, index, 1, *sums))
    return _ANSWER.pack(kind, seconds) + b"".join(parts)


def encode_failure(error: BaseException) -> bytes:
    """Return an exception as a message; one that can't be pickled, or is too long, by its text alone."""
    try:
        message = b"x" + pickle.dumps(error)
    except Exception:  # whatever a foreign exception's own methods raise
        message = b""
    if not 0 < len(message) <= PACKET:
        message = b"x" + pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"[:1000]))
    return message


def decode_answer(message: bytes, sums: Sequence[Floats]) -> Done:
    """Return the answer of a message and the seconds it took. Raises the exception that it stands for.

    Args:
        message: as `encode_answer` or `encode_failure` made it.
        sums: where workers put gradient sums, an array a shard.
    """
    if message[:1] == b"x":
        raise pickle.loads(message[1:])  # noqa: S301 - from a worker of ours, over a socket that only it has
    kind, seconds = _ANSWER.unpack_from(message)
    if kind == b"d":
        return None, seconds
    answer: dict[Node, GradientSum | ErrorSums | None] = {}
    for start in range(_ANSWER.size, len(message), _PART.size):
        level, index, something, outputs, rows, weight, loss, absolute, squared, wrong = _PART.unpack_from(message, start)
        node = level, index
        if something == _NOTHING:
            answer[node] = None
            continue
        errors = ErrorSums(rows, weight, outputs, loss, absolute, squared, None if wrong == _NOTHING else wrong)
        answer[node] = GradientSum(sums[first_member(node)], errors) if kind == b"g" else errors
    return answer, seconds  # type: ignore[return-value] # one kind of part throughout


def serve(worker: Worker, address: str, terms: Terms) -> None:
    """Connect a worker to the coordinator of its node and answer its tasks until it hangs up.

    Raises:
        OSError: the coordinator can't be reached from here.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connected:
        connected.connect(address)
        _, descriptors, _, _ = socket.recv_fds(connected, PACKET, descriptors_of(terms))
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - takes no keywords
        if descriptors:
            with suppress(ConnectionError):
                _Server(worker, connected, Arena.attach(terms, descriptors)).answer_all()


class _Server:
    """A worker's end of the exchange."""

    def __init__(self, worker: Worker, connected: socket.socket, arena: Arena) -> None:
        self._worker, self._socket, self._arena = worker, connected, arena
        update = arena.terms.update
        self._updater = Updater(update.optimizer, update.model, update.layout)
        self._waiting = select.poll()
        self._waiting.register(connected, select.POLLIN)

    def answer_all(self) -> None:
        """Answer until the coordinator hangs up."""
        while message := self._receive():
            try:
                self._answer(message)
            except ConnectionError:
                raise
            except Exception as error:  # which the coordinator will raise
                self._socket.send(encode_failure(error))

    def _answer(self, message: bytes) -> None:
        began = perf_counter()
        if message[:1] == b"r":
            run_rounds(decode_rounds(message), self._worker, self._updater, self._arena, self._hung_up)
            self._socket.send(_ANSWER.pack(b"d", perf_counter() - began))
            return
        task, place = decode_task(message)
        answer = self._worker.run(task, self._arena.weights[place], self._arena.sums)
        self._socket.send(encode_answer(answer, perf_counter() - began))  # type: ignore[arg-type] # to a round's task
        if isinstance(task, ComputeGradients):
            self._worker.anticipate(task)

    def _receive(self) -> bytes:
        """Return the next message, empty at the end. Sleeps only after a while: to be woken takes longer than a small update."""
        until = perf_counter() + SPIN_SECONDS
        while not self._waiting.poll(0) and perf_counter() < until:
            os.sched_yield()  # the coordinator may need this very core
        return self._socket.recv(PACKET)

    def _hung_up(self) -> bool:
        return bool(self._waiting.poll(0))
