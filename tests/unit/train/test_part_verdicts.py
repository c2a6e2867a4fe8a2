"""Several hosts' verdicts become the run's."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_scale.train.part_verdicts import merge, part_path, read_parts
from llama_scale.train.verdict import FirstFailure, Verdict

OK = Verdict(state="ok", exit_code=0, message="done")
SAVED = Verdict(state="preempted", exit_code=75, message="stopped on request; the state is saved")


def failed(rank: int, kind: str, time: str, victims: tuple[int, ...] = ()) -> Verdict:
    first = FirstFailure(rank=rank, kind=kind, error=f"{kind} of {rank}", time_utc=time)  # type: ignore[arg-type]
    message = f"rank {rank} failed first: {kind} (victims: rank 9)"
    return Verdict(state="failed", exit_code=5, first_failure=first, victims=victims, message=message)


def judge(verdicts: dict[int, Verdict], nodes: int = 2) -> Verdict:
    return merge(verdicts, nodes=nodes, devices=2, command="srun", status=0)


def test_all_hosts_must_have_ended_well() -> None:
    assert judge({0: OK, 1: OK}).state == "ok"
    assert judge({0: SAVED, 1: SAVED}) == SAVED
    assert judge({0: OK, 1: SAVED}).exit_code == 75


def test_a_cause_on_another_host_wins_over_what_followed_from_it() -> None:
    verdict = judge({0: failed(0, "collateral", "1", (1,)), 1: failed(3, "crash", "2", (2,))})
    assert verdict.first_failure is not None and verdict.first_failure.rank == 3
    assert verdict.victims == (0, 1, 2)
    assert verdict.message == "rank 3 failed first: crash"


def test_the_earliest_of_several_causes_is_named() -> None:
    verdict = judge({0: failed(1, "oom", "2"), 1: failed(2, "crash", "1")})
    assert verdict.first_failure is not None and verdict.first_failure.rank == 2


@pytest.mark.parametrize(
    ("verdicts", "words", "victims"),
    [
        ({0: failed(0, "collateral", "1", (1,))}, "the agent of host 1 (of 0 to 1) left no word", (1, 2, 3)),
        ({0: OK}, "the agent of host 1 (of 0 to 1) left no word", (2, 3)),
        ({}, "the agent of every host left no word of its end; srun ended with status 0", (0, 1, 2, 3)),
    ],
)
def test_hosts_without_a_word_are_lost(verdicts: dict[int, Verdict], words: str, victims: tuple[int, ...]) -> None:
    # srun ends with 0 when it could not start a task at all.
    verdict = judge(verdicts)
    assert verdict.state == "failed" and verdict.exit_code == 5 and words in verdict.message
    assert verdict.first_failure is not None and verdict.first_failure.kind == "node-lost"
    assert set(victims) <= set(verdict.victims)


def test_many_lost_hosts_are_not_all_listed() -> None:
    assert "host 1, 2, 3, 4, 5, 6, 7, 8 and 91 more (of 0 to 99)" in judge({0: OK}, nodes=100).message


def test_killed_command_is_named() -> None:
    assert "mpirun was killed by SIGKILL" in merge({}, nodes=1, devices=1, command="mpirun", status=-9).message


def test_lost_peers_only_name_the_earliest() -> None:
    verdict = judge({0: failed(0, "collateral", "2"), 1: failed(2, "collateral", "1")})
    assert verdict.first_failure is not None and verdict.first_failure.rank == 2


def test_verdicts_are_read_back(tmp_path: Path) -> None:
    written = failed(3, "crash", "2", (1, 2))
    written.write(part_path(tmp_path, 1))
    OK.write(part_path(tmp_path, 0))
    (tmp_path / "verdict-node-00002.json").write_text("{")  # being written
    assert read_parts(tmp_path) == {0: OK, 1: written}
