"""The exchange with workers on the coordinator's node: arrays in shared memory, and a tiny message on a local socket a round.

The coordinator listens on an abstract Unix socket, which has no file; a worker connects when it is asked to, and is known by
its process id, which the kernel vouches for. A message is one packet. What the coordinator writes, the worker may only read,
and the other way round.
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

from cluster.shared_arrays import SharedArrays
from worker.arrays import Floats
from worker.engine import Worker
from worker.messages import Answer, ComputeGradients, Evaluate
from worker.network import ErrorSums, GradientSum
from worker.tree import Node

RoundTask = ComputeGradients | Evaluate

PACKET: Final = 1 << 17
"""Bytes of a message at most."""

SPIN_SECONDS: Final = 200e-6
"""How long a worker looks for the next task before it sleeps: about what the coordinator needs for a small update."""

_HEADER: Final = struct.Struct("<cBxxxxxxq")  # kind, which weights, round
_MEMORY: Final = struct.Struct("<cxxxxxxxqq8s")  # kind, parameters, arrays for sums, dtype
_PART: Final = struct.Struct("<iiiiqddd")  # level, index, array (or -1), outputs, rows, loss, absolute, squared
_WRONG: Final = struct.Struct("<q")
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
        self._sums: SharedArrays | None = None

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def share(self, weights: SharedArrays, sums: int) -> None:
        """Give the worker the weights to read, and room for so many gradient sums."""
        self._sums = SharedArrays.create(sums, weights.entries, weights.dtype, writeable=False)
        message = _MEMORY.pack(b"m", weights.entries, sums, weights.dtype.encode())
        with suppress(ConnectionError):  # which reading from the link tells as well
            socket.send_fds(self._socket, [message], [weights.descriptor, self._sums.descriptor])

    def submit(self, task: RoundTask, place: int) -> None:
        """Send a task for the weights at this place among the shared ones."""
        with suppress(ConnectionError):  # which reading from the link tells as well
            self._socket.send(encode_task(task, place))

    def answer(self) -> tuple[Answer, float] | None:
        """Return the answer that has come, if one has, and how many seconds the worker took for it.

        Raises:
            LinkLostError: the worker is gone.
            Exception: whatever the worker raised.
        """
        assert self._sums is not None, "an answer to a task that was given"
        try:
            message = self._socket.recv(PACKET)
        except BlockingIOError:
            return None
        except OSError as error:
            raise LinkLostError from error
        if not message:
            raise LinkLostError
        return decode_answer(message, self._sums.arrays)

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


def encode_answer(answer: Mapping[Node, GradientSum | ErrorSums | None], arrays: Sequence[Floats], seconds: float) -> bytes:
    """Return an answer as a message that names the arrays its gradient sums are in."""
    kind = b"e"
    parts = []
    for (level, index), part in answer.items():
        errors, place = part, 0
        if isinstance(part, GradientSum):
            kind, errors = b"g", part.errors
            place = next(number for number, array in enumerate(arrays) if array is part.gradient_P)
        if errors is None:
            parts.append(_PART.pack(level, index, _NOTHING, 0, 0, 0.0, 0.0, 0.0) + _WRONG.pack(_NOTHING))
        else:
            assert isinstance(errors, ErrorSums)
            wrong = _NOTHING if errors.wrong is None else errors.wrong
            sums = (errors.outputs, errors.rows, errors.loss, errors.absolute, errors.squared)
            parts.append(_PART.pack(level, index, place, *sums) + _WRONG.pack(wrong))
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


def decode_answer(message: bytes, arrays: Sequence[Floats]) -> tuple[Answer, float]:
    """Return the answer of a message and the seconds it took. Raises the exception that it stands for."""
    if message[:1] == b"x":
        raise pickle.loads(message[1:])  # noqa: S301 - from a worker of ours, over a socket that only it has
    kind, seconds = _ANSWER.unpack_from(message)
    answer: dict[Node, GradientSum | ErrorSums | None] = {}
    for start in range(_ANSWER.size, len(message), _PART.size + _WRONG.size):
        level, index, place, outputs, rows, loss, absolute, squared = _PART.unpack_from(message, start)
        (wrong,) = _WRONG.unpack_from(message, start + _PART.size)
        if place == _NOTHING:
            answer[level, index] = None
            continue
        errors = ErrorSums(rows, outputs, loss, absolute, squared, None if wrong == _NOTHING else wrong)
        answer[level, index] = GradientSum(arrays[place], errors) if kind == b"g" else errors
    return answer, seconds  # type: ignore[return-value] # one kind of part throughout


def serve(worker: Worker, address: str) -> None:
    """Connect a worker to the coordinator of its node and answer its tasks until it hangs up.

    Raises:
        OSError: the coordinator can't be reached from here.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connected:
        connected.connect(address)
        message, descriptors, _, _ = socket.recv_fds(connected, PACKET, 2)
        if len(descriptors) < 2:
            return
        _, entries, count, dtype = _MEMORY.unpack(message)
        name = dtype.rstrip(b"\0").decode()
        weights = SharedArrays(descriptors[0], 2, entries, name, writeable=False)
        sums = SharedArrays(descriptors[1], count, entries, name, writeable=True)
        with suppress(ConnectionError):
            _answer_all(worker, connected, weights.arrays, sums.arrays)


def _answer_all(worker: Worker, connected: socket.socket, weights: Sequence[Floats], sums: Sequence[Floats]) -> None:
    waiting = select.poll()
    waiting.register(connected, select.POLLIN)
    while message := _receive(connected, waiting):
        began = perf_counter()
        try:
            task, place = decode_task(message)
            answer = worker.run(task, weights[place], sums)
            connected.send(encode_answer(answer, sums, perf_counter() - began))  # type: ignore[arg-type] # to a round's task
        except ConnectionError:
            raise
        except Exception as error:  # which the coordinator will raise
            connected.send(encode_failure(error))
            continue
        if isinstance(task, ComputeGradients):
            worker.anticipate(task)


def _receive(connected: socket.socket, waiting: select.poll) -> bytes:
    """Return the next message, empty at the end. Sleeps only after a while: to be woken takes longer than a small update."""
    until = perf_counter() + SPIN_SECONDS
    while not waiting.poll(0) and perf_counter() < until:
        os.sched_yield()  # the coordinator may need this very core
    return connected.recv(PACKET)
