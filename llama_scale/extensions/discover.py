"""Plugins by name: what ``train``, ``convert`` and the commands load descriptors and implementations through.

The metadata side and the loading of descriptors are in ``spec.plugins``, since a spec's options cannot be checked
without them; here they get the public types, and implementations are imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from llama_scale.errors import PluginError
from llama_scale.extensions.api import ADAPTERS, GATES, LAUNCHERS, TASKS
from llama_scale.spec.plugins import Descriptor, catalogue, import_object

if TYPE_CHECKING:
    from llama_scale.extensions.api import AdapterDescriptor, GateDescriptor, LauncherDescriptor, TaskDescriptor


def adapter(kind: str) -> AdapterDescriptor:
    """Return the descriptor of a kind of adapter.

    Raises:
        PluginError: There is none, several distributions bring it, or it is broken.
    """
    return cast("AdapterDescriptor", catalogue().load(ADAPTERS, kind))


def task(kind: str) -> TaskDescriptor:
    """Return the descriptor of a kind of task.

    Raises:
        PluginError: As for ``adapter``.
    """
    return cast("TaskDescriptor", catalogue().load(TASKS, kind))


def gate(kind: str) -> GateDescriptor:
    """Return the descriptor of a kind of gate.

    Raises:
        PluginError: As for ``adapter``.
    """
    return cast("GateDescriptor", catalogue().load(GATES, kind))


def launcher(kind: str) -> LauncherDescriptor:
    """Return the descriptor of a kind of launcher.

    Raises:
        PluginError: As for ``adapter``.
    """
    return cast("LauncherDescriptor", catalogue().load(LAUNCHERS, kind))


def names(group: str) -> Sequence[str]:
    """Return the names that installed distributions bring to a group, without importing any of them."""
    return catalogue().names(group)


def read_options(descriptor: Descriptor, options: Mapping[str, Any]) -> Any:
    """Return a resolved spec's options of a plugin as the model that its descriptor names."""
    return descriptor.options.model_validate_json(json.dumps(options), by_alias=True, by_name=False)


def implementation(descriptor: Descriptor) -> Any:
    """Import what a descriptor names as its implementation; torch is needed for most.

    Raises:
        PluginError: Importing it failed.
    """
    try:
        return import_object(descriptor.implementation)
    except PluginError as error:
        raise PluginError(
            f"the implementation of {descriptor.name!r} cannot be loaded: {error}; "
            "reinstall or repair the distribution that brings it"
        ) from error.__cause__
