from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.plan.topology import Coordinates, Topology

topologies = st.builds(Topology, dp_size=st.integers(1, 6), tp_size=st.integers(1, 6), pp_size=st.integers(1, 6))


@given(topologies)
def test_ranks_and_coordinates_are_a_bijection(topology: Topology) -> None:
    places = [topology.coordinates(rank) for rank in range(topology.world_size)]

    assert len(set(places)) == topology.world_size
    for rank, place in enumerate(places):
        assert topology.rank(dp_rank=place.dp_rank, pp_rank=place.pp_rank, tp_rank=place.tp_rank) == rank


@given(topologies, st.sampled_from(["tp", "dp", "pp"]))
def test_groups_partition_the_world_and_differ_along_one_axis(topology: Topology, axis: str) -> None:
    groups = topology.groups(axis)

    assert sorted(rank for group in groups for rank in group) == list(range(topology.world_size))
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)
    for group in groups:
        places = [topology.coordinates(rank) for rank in group]
        assert [getattr(place, f"{axis}_rank") for place in places] == list(range(len(group)))
        for other in {"tp", "dp", "pp"} - {axis}:
            assert len({getattr(place, f"{other}_rank") for place in places}) == 1


def test_order_is_tensor_innermost_pipeline_outermost() -> None:
    topology = Topology(dp_size=2, tp_size=2, pp_size=2)

    assert topology.groups("tp") == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert topology.groups("dp") == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert topology.groups("pp") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert topology.coordinates(5) == Coordinates(dp_rank=0, pp_rank=1, tp_rank=1)


@pytest.mark.parametrize("rank", [-1, 8])
def test_rank_outside_the_world_is_refused(rank: int) -> None:
    with pytest.raises(IndexError, match=rf"rank={rank} lies outside 0\.\.7"):
        Topology(dp_size=2, tp_size=2, pp_size=2).coordinates(rank)


@pytest.mark.parametrize(("axis", "value"), [("dp", 3), ("tp", -1), ("pp", 2)])
def test_coordinate_outside_its_axis_is_refused(axis: str, value: int) -> None:
    place = {"dp_rank": 0, "pp_rank": 0, "tp_rank": 0, f"{axis}_rank": value}
    with pytest.raises(IndexError, match=rf"{axis}_rank={value} lies outside 0\.\."):
        Topology(dp_size=3, tp_size=2, pp_size=2).rank(**place)
