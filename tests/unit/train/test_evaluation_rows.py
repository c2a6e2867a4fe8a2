from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llama_scale.plan.run_plan import BatchPlan
from llama_scale.train.evaluation_rows import Piece, deal

BATCHES = st.builds(
    lambda micro, accumulation: BatchPlan(
        global_batch=micro * accumulation, micro_batch=micro, accumulation=accumulation, seq_length=4
    ),
    micro=st.integers(1, 20),
    accumulation=st.integers(1, 6),
)


@settings(deadline=None)
@given(count=st.integers(0, 90), batch=BATCHES, dp_size=st.integers(1, 5), group=st.sampled_from([1, 3, 8]))
def test_replicas_read_every_row_once_and_groups_whole(count: int, batch: BatchPlan, dp_size: int, group: int) -> None:
    parts = [list(deal(count, batch=batch, dp_rank=d, dp_size=dp_size, group=group)) for d in range(dp_size)]

    # All ranks take part in every forward pass, and pipelines want whole multiples of the accumulation steps.
    assert len({tuple(len(call) for call in part) for part in parts}) == 1
    assert all(len(call) and len(call) % batch.accumulation == 0 for call in parts[0])
    seen: list[range] = []
    for part in parts:
        for call in part:
            waiting: list[Piece] = []
            for slot, pieces in enumerate(call):
                assert sum(len(piece.rows) for piece in pieces) <= batch.micro_batch
                for piece in pieces:
                    waiting.append(piece)
                    if not piece.continues:
                        rows = range(waiting[0].rows.start, piece.rows.stop)
                        assert [k for found in waiting for k in found.rows] == list(rows)
                        assert len(rows) == group or rows.stop == count
                        assert rows.start % group == 0
                        seen.append(rows)
                        waiting = []
                    else:
                        assert piece is pieces[-1] and slot + 1 < len(call)
            assert not waiting, "a group ends in the call that it begins in"
    assert sorted(k for rows in seen for k in rows) == list(range(count))


def test_no_more_passes_than_the_rows_need() -> None:
    batch = BatchPlan(global_batch=12, micro_batch=3, accumulation=2, seq_length=4)

    calls = [list(deal(24, batch=batch, dp_rank=d, dp_size=2)) for d in range(2)]

    assert [len(part) for part in calls] == [2, 2]
    assert all(sum(len(piece.rows) for piece in slot) == 3 for part in calls for call in part for slot in call)
