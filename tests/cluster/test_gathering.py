"""When the sums of a node's workers are to be added up, without Ray."""

from cluster.gathering import Gathering


def test_a_nodes_sums_are_ready_when_the_last_of_its_workers_has_its() -> None:
    gathering: Gathering[str] = Gathering()
    for node, worker in (("a", 0), ("a", 1), ("b", 2)):
        gathering.begin(node, worker)

    assert gathering.computed("a", 1, "one") == {}
    assert gathering.computed("b", 2, "two") == {2: "two"}
    assert gathering.computed("a", 0, "zero") == {0: "zero", 1: "one"}


def test_nobody_waits_for_a_worker_that_is_lost() -> None:
    gathering: Gathering[str] = Gathering()
    for worker in (0, 1, 2):
        gathering.begin("a", worker)

    assert gathering.left("a", 2) == {}
    assert gathering.computed("a", 0, "zero") == {}
    assert gathering.left("a", 1) == {0: "zero"}
    assert gathering.left("a", 0) == {}, "it is fetched already"
    assert gathering.left("b", 7) == {}, "it was no part of any"


def test_the_sum_of_a_worker_that_is_lost_is_left_out_since_others_compute_it_anew() -> None:
    gathering: Gathering[str] = Gathering()
    for worker in (0, 1, 2):
        gathering.begin("a", worker)
    assert gathering.computed("a", 0, "zero") == {}
    assert gathering.computed("a", 1, "one") == {}
    assert gathering.left("a", 1) == {}
    assert gathering.computed("a", 2, "two") == {0: "zero", 2: "two"}


def test_what_is_computed_in_repair_is_gathered_anew() -> None:
    gathering: Gathering[str] = Gathering()
    gathering.begin("a", 0)
    assert gathering.computed("a", 0, "first") == {0: "first"}
    gathering.begin("a", 0)
    assert gathering.computed("a", 0, "second") == {0: "second"}
