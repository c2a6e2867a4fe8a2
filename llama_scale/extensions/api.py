"""The public, light side of a plugin: descriptors. An entry point names one; nothing here imports torch.

A descriptor says what a spec may write (``options``), which parameters follow from it (so that plans, checkpoints and
layouts need no torch) and, as a dotted string, where the implementation is that only workers import:

    [project.entry-points."llama_scale.adapters"]
    vera = "llama_scale_vera:DESCRIPTOR"

``ADAPTERS``, ``TASKS``, ``GATES`` and ``LAUNCHERS`` are the entry point groups; a descriptor whose ``api_version`` is
not ``API_VERSION`` is listed as broken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from llama_scale.layout.parameters import Init
from llama_scale.spec.base import NonNegativeInt, PathStr, PositiveInt, Section
from llama_scale.spec.model import ModelShape
from llama_scale.spec.plugins import ADAPTERS, API_VERSION, GATES, GROUPS, LAUNCHERS, TASKS

__all__ = [
    "ADAPTERS",
    "API_VERSION",
    "GATES",
    "GROUPS",
    "LAUNCHERS",
    "TASKS",
    "AdapterDescriptor",
    "AdapterOptions",
    "ExtraParameter",
    "GateDescriptor",
    "GateOptions",
    "LastLayers",
    "LauncherDescriptor",
    "ModelShape",
    "PathStr",
    "Section",
    "TaskDescriptor",
    "TaskOptions",
]


class LastLayers(Section):
    """The last layers of the model."""

    last: PositiveInt = Field(description="How many layers, counted from the last.")


class AdapterOptions(Section):
    """Base of every adapter's options."""

    layers: Literal["all"] | LastLayers | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = Field(
        "all", description="Which layers it touches: all, {last: k} or a list of numbers from 0."
    )

    def layer_numbers(self, num_layers: int) -> tuple[int, ...]:
        """Return the touched layers in ascending order.

        Raises:
            ValueError: A layer is named that the model does not have, or named twice.
        """
        if self.layers == "all":
            return tuple(range(num_layers))
        if isinstance(self.layers, LastLayers):
            if self.layers.last > num_layers:
                raise ValueError(f"layers.last={self.layers.last}, but the model has {num_layers} layers")
            return tuple(range(num_layers - self.layers.last, num_layers))
        worst = max(self.layers)
        if worst >= num_layers:
            raise ValueError(
                f"layers names layer {worst}, but the model's {num_layers} layers are 0 to {num_layers - 1}"
            )
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers={list(self.layers)} names a layer twice")
        return tuple(sorted(self.layers))


class TaskOptions(Section):
    """Base of every task's options."""


class GateOptions(Section):
    """Base of every gate's options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraParameter:
    """One logical parameter that an adapter adds to a layer, or a task head or gate to the end of the model.

    Args:
        name: Dotted name within its owner, e.g. ``q_proj.lora_A``.
        shape: Logical shape: the whole model's. A rank holds equal parts of dim ``tp_dim``.
        tp_dim: Dim that tensor parallelism cuts; None: every tensor parallel rank holds the whole.
        init: ``zeros``, ``ones``, ``normal`` (with ``std``) or ``kaiming_uniform`` (torch's default for a linear
            layer, a = sqrt(5): uniform within 1/sqrt(last dim of the shape)). A pure function of (seed, name, element).
        std: Standard deviation for ``normal``.
        trainable: False for parameters that stay as initialised.
        partial_gradient: With sequence parallelism this replicated parameter is used on a part of the sequence only, so
            its gradient is summed over the tensor parallel group.
    """

    name: str
    shape: tuple[int, ...]
    tp_dim: int | None = None
    init: Init = "zeros"
    std: float = 0.0
    trainable: bool = True
    partial_gradient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDescriptor:
    """A kind of adapter.

    Args:
        name: Its name in a spec (``adapters[].kind``); equals the entry point's name.
        options: Model of its options.
        parameters: (options, shape, layer) -> the parameters it adds to that layer; pure.
        implementation: ``package.module:Class`` of an ``extensions.adapter.LayerAdapter``. That module imports nothing
            but torch and ``llama_scale.extensions.adapter``: it is copied into exported models.
        summary: One line for ``plugins list``.
        not_mergeable: options -> the reason why it cannot be added into the base's weights, or None if it can
            (``LayerAdapter.merged_weight`` then gives the merged matrices).
        changes_at_start: Why a fresh one changes the model; None: it does not (and `plugins check` holds it to that).
        peft: ``package.module:object`` that writes and reads PEFT's format (see ``convert.peft``); None: it has none.
        api_version: Version of this interface it was written for.
    """

    name: str
    options: type[AdapterOptions]
    parameters: Callable[[Any, ModelShape, int], tuple[ExtraParameter, ...]]
    implementation: str
    summary: str
    not_mergeable: Callable[[Any], str | None]
    changes_at_start: str | None = None
    peft: str | None = None
    api_version: int = API_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDescriptor:
    """A kind of task.

    Args:
        name: Its name in a spec (``tasks[].kind``).
        options: Model of its options.
        implementation: ``package.module:Class`` of an ``extensions.task.Task``.
        summary: One line for ``plugins list``.
        head: ``lm`` (the model's own output layer gives the loss) or ``own`` (``Task.loss`` does, on hidden states).
        parameters: (options, shape) -> what the head adds to the end of the model; pure.
        files: options -> the files it reads, for preflight.
        unmixable: Why it does not go with the section ``mixture`` at all; None: it does (a head of its own goes with
            ``objective: per_task`` only).
        sample: A few rows such as its files hold, for `plugins check` where no files are named.
        sample_options: Options that `plugins check` takes where it is given none, for those that have no default.
        api_version: Version of this interface it was written for.
    """

    name: str
    options: type[TaskOptions]
    implementation: str
    summary: str
    head: Literal["lm", "own"] = "lm"
    parameters: Callable[[Any, ModelShape], tuple[ExtraParameter, ...]] = field(default=lambda _options, _shape: ())
    files: Callable[[Any], tuple[str, ...]] = field(default=lambda _options: ())
    unmixable: str | None = None
    sample: tuple[Mapping[str, Any], ...] = ()
    sample_options: Mapping[str, Any] = field(default_factory=dict)
    api_version: int = API_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDescriptor:
    """A kind of router for ``mixture.weights: gate``.

    Args:
        name: Its name in a spec (``mixture.gate``).
        options: Model of its options.
        parameters: (options, shape, number of adapters) -> its parameters, on the last stage; pure.
        implementation: ``package.module:Class`` of an ``extensions.gate.Gate``; imports torch and that module alone.
        summary: One line for ``plugins list``.
        api_version: Version of this interface it was written for.
    """

    name: str
    options: type[GateOptions]
    parameters: Callable[[Any, ModelShape, int], tuple[ExtraParameter, ...]]
    implementation: str
    summary: str
    api_version: int = API_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherDescriptor:
    """A way to start a run's processes.

    Args:
        name: Its name in a spec (``launcher.kind``).
        options: Model of the section's other keys.
        implementation: ``package.module:Class`` of a ``launchers.base.Launcher``; ``validate`` does not import it.
        summary: One line for ``plugins list``.
        sample_options: See ``TaskDescriptor``.
        api_version: Version of this interface it was written for.
    """

    name: str
    options: type[Section]
    implementation: str
    summary: str
    sample_options: Mapping[str, Any] = field(default_factory=dict)
    api_version: int = API_VERSION
