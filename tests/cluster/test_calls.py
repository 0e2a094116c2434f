"""What Ray's errors come to in a few words."""

import pytest
from ray.exceptions import ActorUnavailableError, ActorUnschedulableError, ObjectLostError, RayActorError

from cluster.addresses import MODE
from cluster.calls import death_cause
from cluster.launch import _unreachable

PARAGRAPH = "The actor died unexpectedly before finishing this task.\n\tclass_name: WorkerActor\n\tpid: 7\n"
ENDED = PARAGRAPH + "The actor is dead because its worker process has died. Worker exit type: "
UNSEEN = "RpcError: RPC Error message: failed to connect to all addresses; last error: UNKNOWN; RPC Error details: "


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            RayActorError("7", PARAGRAPH + "The actor died because its node has died. Node Id: 5\n\tterminated"),
            "its node is gone",
        ),
        (RayActorError("7", ENDED + "SYSTEM_ERROR"), "its process died"),
        (RayActorError("7", ENDED + "NODE_OUT_OF_MEMORY"), "Ray ended it, since its node had hardly any memory left"),
        (RayActorError("7", "an error raised in its creation task, ray::X()\nValueError: no\n", True), "ValueError: no"),
        (ActorUnavailableError(UNSEEN, None), "it can't be reached"),
        (ActorUnschedulableError("The node does not exist any more"), "its node is gone"),
        (ObjectLostError("00ff", None, "stack"), "what it had computed is gone"),
        (RayActorError("7", "Something new.\nAt length."), "Something new."),
    ],
)
def test_why_an_actor_is_lost_is_told_in_a_few_words(error: Exception, cause: str) -> None:
    assert death_cause(error) == cause


@pytest.mark.parametrize(
    ("address", "mode", "hint"),
    [
        ("head:6379", "", "; where it wants a token, set RAY_AUTH_MODE=token"),
        ("head:6379", "token", ""),
        ("local", "", ""),
    ],
)
def test_a_cluster_that_can_not_be_reached_may_want_a_token(
    address: str, mode: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODE, mode)
    error = ConnectionError("Failed to connect to Ray cluster at 192.0.2.1:6379\nmore")
    assert str(_unreachable(address, error)) == (
        f"Ray at address '{address}' can't be reached: Failed to connect to Ray cluster at 192.0.2.1:6379{hint}"
    )
