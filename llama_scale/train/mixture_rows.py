"""Which rows a mixture's layers have: N adapters run as one forward pass, in which the base's weights are read once.

Up to the first adapted layer a micro-batch has its B rows. That layer makes more of them: from there on the first B are
those of before, a mixture's rows among them as adapter 0's, followed by these rows once more for every other adapter
and, for a gate to read, for the bare base.

Shape letters: S sequence, B rows of the micro-batch, M those of them that are the mixture's, R rows after the branch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from llama_scale.extensions import discover
from llama_scale.spec.adapters import mixed_adapters
from llama_scale.train.adapting import Rows
from llama_scale.train.engine import Route

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The rows of one micro-batch.

    Args:
        rows: The rows after the branch, in order.
        mixed: Where the mixture's rows are among the micro-batch's, as ranges.
        routes: The ways and tasks of the mixture's rows, counted among themselves from 0.
        outside: The ways of the other rows, which go through their own adapter alone.
    """

    rows: tuple[Rows, ...]
    mixed: tuple[tuple[int, int], ...]
    routes: tuple[Route, ...]
    outside: tuple[Route, ...]

    def take(self, values: torch.Tensor, *, dim: int = 0) -> torch.Tensor:
        """Return the mixture's rows of a tensor that has the micro-batch's rows at the front of a dim."""
        parts = [values.narrow(dim, start, stop - start) for start, stop in self.mixed]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim) if parts else values.narrow(dim, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureRows:
    """How a run's mixture lays out rows.

    Args:
        adapters: Names of the adapters that are mixed, a_1 to a_N.
        numbers: Name of any adapter of the run -> its number in the spec.
        gated: A gate reads the bare base's rows.
        per_task: Training sends each row through its own adapter alone; evaluation never does.
        own_heads: Names of tasks with a head of their own: their rows are no next-token data, and never the mixture's.
    """

    adapters: tuple[str, ...]
    numbers: Mapping[str, int]
    gated: bool
    per_task: bool
    own_heads: frozenset[str] = frozenset()

    def all_adapters(self, *, training: bool) -> bool:
        """Tell whether the mixture's rows go through all its adapters."""
        return not (self.per_task and training)

    def layout(self, given: Sequence[Route], *, rows: int, training: bool) -> Layout:
        """Lay out a micro-batch.

        Args:
            given: The micro-batch's own routes; without any, all rows are the mixture's.
            rows: B.
            training: Whether this is a training step.
        """
        every = self.all_adapters(training=training)
        given = given or (Route(adapter=self.adapters[0], task=None, start=0, stop=rows),)
        # Where every row goes through every adapter, a row's own adapter does not matter, and it may have none.
        inside = [
            (route.adapter in self.adapters or not self.per_task) and route.task not in self.own_heads
            for route in given
        ]
        mixed = [route for route, is_mixed in zip(given, inside, strict=True) if is_mixed]
        found: list[Rows] = []
        for route, is_mixed in zip(given, inside, strict=True):
            _append(found, self._number(self.adapters[0] if every and is_mixed else route.adapter), route)
        for adapter in [*(self.adapters[1:] if every else ()), *((None,) if self.gated else ())]:
            for route in mixed:
                _append(found, self._number(adapter), route)
        return Layout(
            rows=tuple(found),
            mixed=_joined(mixed),
            routes=_counted(mixed),
            outside=tuple(route for route, is_mixed in zip(given, inside, strict=True) if not is_mixed),
        )

    def _number(self, adapter: str | None) -> int | None:
        return None if adapter is None else self.numbers[adapter]


def mixture_rows(spec: RunSpec) -> MixtureRows | None:
    """Return how the spec's mixture lays out rows; None without one."""
    if spec.mixture is None:
        return None
    return MixtureRows(
        adapters=mixed_adapters(spec.adapters, spec.mixture),
        numbers={adapter.name: number for number, adapter in enumerate(spec.adapters)},
        gated=spec.mixture.weights == "gate",
        per_task=spec.mixture.objective == "per_task",
        own_heads=frozenset(task.name for task in spec.tasks if discover.task(task.kind).head == "own"),
    )


def _append(rows: list[Rows], adapter: int | None, route: Route) -> None:
    """Let a route's rows follow, as part of the last rows where they go on in the same way."""
    last = rows[-1] if rows else Rows(None, 0, 0, 0)
    count, length = route.stop - route.start, last.stop - last.start
    if rows and last.adapter == adapter and last.source + length == route.start:
        rows[-1] = Rows(adapter, last.start, last.stop + count, last.source)
    else:
        rows.append(Rows(adapter, last.stop, last.stop + count, route.start))


def _joined(routes: Sequence[Route]) -> tuple[tuple[int, int], ...]:
    """Return the rows of routes as ranges, neighbours joined."""
    ranges: list[tuple[int, int]] = []
    for route in routes:
        if ranges and ranges[-1][1] == route.start:
            ranges[-1] = (ranges[-1][0], route.stop)
        else:
            ranges.append((route.start, route.stop))
    return tuple(ranges)


def _counted(routes: Sequence[Route]) -> tuple[Route, ...]:
    """Return routes with their rows counted anew, one after the other from 0."""
    found: list[Route] = []
    for route in routes:
        start = found[-1].stop if found else 0
        stop = start + route.stop - route.start
        found.append(Route(adapter=route.adapter, task=route.task, start=start, stop=stop))
    return tuple(found)


def branched(values: torch.Tensor, rows: Sequence[Rows], *, dim: int) -> torch.Tensor:
    """Return what belongs to the rows after the branch, copied from a trunk's rows where it is not there already."""
    present, wanted = values.shape[dim], rows[-1].stop
    if present == wanted:
        return values
    if all(r.source == 0 and r.stop - r.start == present for r in rows):
        return values.repeat([wanted // present if d == dim else 1 for d in range(values.dim())])
    return torch.cat([values.narrow(dim, r.source, r.stop - r.start) for r in rows], dim)


def narrowed(settings: dict[str, Any], rows: int) -> dict[str, Any]:
    """Cut a layer's ``attention_mask`` and ``rotary_pos_emb`` to its rows: a trunk's are the first of all, as views."""
    mask, rotation = settings.get("attention_mask"), settings["rotary_pos_emb"]
    if mask is not None and mask.shape[0] > rows:
        settings = {**settings, "attention_mask": mask[:rows]}
    if rotation.shape[2] > rows:
        settings = {**settings, "rotary_pos_emb": rotation[:, :, :rows]}
    return settings
