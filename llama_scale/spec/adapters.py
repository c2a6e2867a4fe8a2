"""Sections ``adapters``, ``tasks`` and ``mixture``: their form; plugins define the options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from llama_scale.spec.base import Name, NonNegativeFloat, Section

if TYPE_CHECKING:
    from collections.abc import Sequence


class Adapter(Section):
    """One adapter a_i on the shared base."""

    name: Name = Field(description="Name of the adapter, unique in the spec.")
    kind: Name = Field(description="Entry point in group llama_scale.adapters, e.g. lora.")
    task: Name | None = Field(None, description="Name of the task it serves.")
    options: dict[str, Any] = Field({}, description="Options of this kind of adapter.")


class Task(Section):
    """One task with its head and data."""

    name: Name = Field(description="Name of the task, unique in the spec.")
    kind: Name = Field(description="Entry point in group llama_scale.tasks, e.g. summarization.")
    weight: NonNegativeFloat = Field(1.0, description="Share of samples when several tasks train in one run.")
    options: dict[str, Any] = Field({}, description="Options of this kind of task.")


class Mixture(Section):
    """p(x_t | x_<t) = sum_i p(x_t | x_<t, a_i, theta_i) p(a_i | theta_i)."""

    weights: Literal["prior", "posterior", "gate"] = Field(
        "prior",
        description="prior: token by token; posterior: Bayes over the prefix; gate: a learned router.",
    )
    objective: Literal["per_task", "joint", "em"] = Field("per_task", description="What training maximises.")
    adapters: tuple[Name, ...] = Field(
        (),
        description="Adapters that are mixed, for objective: per_task; default: all. An adapter of a task with a head "
        "of its own, as semantic search, has no next-token distribution and stays outside.",
    )
    gate: Name | None = Field(None, description="Entry point in group llama_scale.gates, for weights: gate.")
    gate_options: dict[str, Any] = Field({}, description="Options of the gate.")


def mixed_adapters(adapters: Sequence[Adapter], mixture: Mixture) -> tuple[str, ...]:
    """Return the names of the adapters that are mixed, in the order of the section ``adapters``: a_1 to a_N."""
    return tuple(a.name for a in adapters if not mixture.adapters or a.name in mixture.adapters)
