"""Plugins as a spec sees them: names from the metadata of installed distributions, descriptors when one is used.

This module stands below ``extensions`` and does not import it: a descriptor is any object with the fields below, which
``extensions.api`` gives the public classes for. Listing names reads ``entry_points.txt`` files and imports no plugin.
A plugin that is broken, clashes or was made for another interface is a fault of that name alone.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llama_scale.errors import PluginError
from llama_scale.spec.base import Section
from llama_scale.spec.nearby import suggest

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

API_VERSION = 1
"""Version of the interface of descriptors (``extensions.api``); a descriptor of another version is broken."""

ADAPTERS = "llama_scale.adapters"
TASKS = "llama_scale.tasks"
GATES = "llama_scale.gates"
LAUNCHERS = "llama_scale.launchers"
GROUPS = (ADAPTERS, TASKS, GATES, LAUNCHERS)
"""Entry point groups."""

OWN_DISTRIBUTION = "llama-scale"
NOUNS = {ADAPTERS: "adapter", TASKS: "task", GATES: "gate", LAUNCHERS: "launcher"}
"""What messages call a member of each group."""


class Descriptor(Protocol):
    """What every group's descriptors have in common."""

    @property
    def name(self) -> str:
        """Name in a spec."""
        ...

    @property
    def options(self) -> type[Section]:
        """Model of the options."""
        ...

    @property
    def implementation(self) -> str:
        """``package.module:Class``."""
        ...

    @property
    def summary(self) -> str:
        """One line for lists."""
        ...

    @property
    def api_version(self) -> int:
        """Version of the interface it was written for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """One entry point.

    Args:
        group: Entry point group.
        name: Name in a spec.
        target: ``package.module:attribute`` of the descriptor.
        distribution: The Python distribution that brings it.
        version: That distribution's version.
    """

    group: str
    name: str
    target: str
    distribution: str
    version: str

    @property
    def noun(self) -> str:
        """What messages call it."""
        return f"{NOUNS[self.group]} {self.name!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A distribution whose entry points cannot be read."""

    distribution: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """All entry points of the groups.

    Args:
        entries: In the order of groups, then names; a name with several owners occurs several times.
        unreadable: Distributions that may bring more.
    """

    entries: tuple[Registered, ...]
    unreadable: tuple[Unreadable, ...] = ()

    def names(self, group: str) -> tuple[str, ...]:
        """Return the names of a group, sorted."""
        return tuple(sorted({entry.name for entry in self.entries if entry.group == group}))

    def owners(self, group: str, name: str) -> tuple[Registered, ...]:
        """Return who brings a name; more than one is a clash."""
        return tuple(entry for entry in self.entries if (entry.group, entry.name) == (group, name))

    def owner(self, group: str, name: str) -> Registered:
        """Return the one owner of a name.

        Raises:
            PluginError: There is none, or there are several.
        """
        owners = self.owners(group, name)
        if not owners:
            raise PluginError(f"no {NOUNS[group]} is called {name!r}; {self.missing_hint(group, name)}")
        if len(owners) > 1:
            raise PluginError(clash_message(owners))
        return owners[0]

    def load(self, group: str, name: str) -> Any:
        """Return the descriptor of a name.

        Raises:
            PluginError: No such name, a clash, or the plugin is broken.
        """
        return load_descriptor(self.owner(group, name))

    def missing_hint(self, group: str, name: str) -> str:
        """Say what to do about a name that nobody brings."""
        if _in_checkout(group, name):
            return (
                "this checkout of llama-scale brings it, but the installed metadata is older: "
                "run `pip install -e . --no-deps` in the checkout"
            )
        names = self.names(group)
        near = suggest(name, names) if names else ""
        if near.startswith("did"):
            return near
        known = f"; installed: {', '.join(names)}" if names else ""
        return f"install the distribution that brings it{known}"


def catalogue() -> Catalogue:
    """Read the entry points of all installed distributions; imports none of them."""
    from importlib.metadata import distributions  # lazy: specs without plugins need no metadata

    entries: dict[tuple[str, str, str], Registered] = {}
    unreadable: list[Unreadable] = []
    for distribution in distributions():
        try:
            found = list(_entries(distribution))
        except Exception as error:  # whatever is wrong with one distribution's files is that one's fault alone
            reason = f"{type(error).__name__}: {error}"
            unreadable.append(Unreadable(distribution=_name(distribution), reason=f"entry_points.txt: {reason}"))
            continue
        for entry in found:  # the first of two copies on sys.path is the one that Python imports
            entries.setdefault((_normal(entry.distribution), entry.group, entry.name), entry)
    order = sorted(entries.values(), key=lambda e: (GROUPS.index(e.group), e.name, e.distribution))
    return Catalogue(entries=tuple(order), unreadable=tuple(unreadable))


def _entries(distribution: Distribution) -> Iterator[Registered]:
    text = distribution.read_text("entry_points.txt")
    if not text or "llama_scale." not in text:
        return
    for point in distribution.entry_points:
        if point.group in GROUPS:
            yield _registered(point, distribution)


def _registered(point: EntryPoint, distribution: Distribution) -> Registered:
    return Registered(
        group=point.group,
        name=point.name,
        target=point.value,
        distribution=_name(distribution),
        version=str(distribution.version),
    )


def _name(distribution: Distribution) -> str:
    try:
        return str(distribution.metadata["Name"])
    except Exception:  # a distribution without readable metadata still has to be told apart
        return str(getattr(distribution, "_path", "an unnamed distribution"))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def clash_message(owners: Sequence[Registered]) -> str:
    """Say that a name has several owners."""
    brought = " and by ".join(f"{owner.distribution} {owner.version} ({owner.target})" for owner in owners)
    return f"{owners[0].noun} is brought by {brought}; a name has one owner: uninstall one of them"


def load_descriptor(entry: Registered) -> Any:
    """Import an entry point's descriptor and check its form.

    Raises:
        PluginError: It cannot be imported, is no descriptor, or was made for another version of the interface.
    """
    where = f"{entry.noun} of {entry.distribution} {entry.version}"
    repair = f"upgrade, repair or uninstall {entry.distribution}"
    try:
        descriptor = import_object(entry.target)
    except PluginError as error:
        raise PluginError(f"{where} is broken: {error}; {repair}") from error.__cause__
    fault = next(_faults(entry, descriptor), None)
    if fault is not None:
        raise PluginError(f"{where} {fault}; {repair}")
    return descriptor


def import_object(target: str) -> Any:
    """Import what ``package.module:attribute`` names.

    Raises:
        PluginError: The text has another form, or importing fails in whatever way.
    """
    module_name, colon, attributes = target.partition(":")
    if not (colon and module_name and attributes):
        raise PluginError(f"{target!r} is not of the form package.module:attribute")
    try:
        found: Any = importlib.import_module(module_name)
        for attribute in attributes.strip().split("."):
            found = getattr(found, attribute)
    except (Exception, SystemExit) as error:  # a plugin's module may raise anything while it is imported
        text = " ".join(str(error).split()) or "no message"
        raise PluginError(f"importing {target} raised {type(error).__name__}: {text}") from error
    return found


_FIELDS = {"name": str, "options": type, "implementation": str, "summary": str}
_GROUP_FIELDS: Mapping[str, tuple[str, ...]] = {
    ADAPTERS: ("parameters", "not_mergeable"),
    TASKS: ("parameters", "files", "head"),
    GATES: ("parameters",),
    LAUNCHERS: (),
}


def _faults(entry: Registered, descriptor: Any) -> Iterator[str]:
    """Yield what is wrong with a descriptor."""
    version = getattr(descriptor, "api_version", None)
    if not isinstance(version, int):
        yield f"is broken: {entry.target} is {descriptor!r:.60}, which is no descriptor (no api_version)"
        return
    if version != API_VERSION:
        yield f"was made for version {version} of the plugin interface; this llama-scale has version {API_VERSION}"
        return
    for field, kind in _FIELDS.items():
        if not isinstance(getattr(descriptor, field, None), kind):
            yield f"is broken: its descriptor has no valid field {field!r}"
    for field in _GROUP_FIELDS[entry.group]:
        if not hasattr(descriptor, field):
            yield f"is broken: its descriptor is not one of group {entry.group} (no field {field!r})"
    if descriptor.name != entry.name:
        yield f"is broken: its descriptor calls itself {descriptor.name!r}; the entry point's name has to be the same"
    options = descriptor.options
    if not issubclass(options, Section) or (entry.group == ADAPTERS and not hasattr(options, "layer_numbers")):
        yield "is broken: its options are not a subclass of the group's options in llama_scale.extensions.api"
    elif options.model_config.get("extra") != "forbid":
        yield "is broken: its options accept unknown keys, so that misspelt ones would be ignored"


def _in_checkout(group: str, name: str) -> bool:
    """Tell whether the pyproject.toml beside this package (in a checkout) brings a name."""
    import tomllib
    from pathlib import Path

    try:
        text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text)["project"]
    except (OSError, ValueError, KeyError):
        return False
    return project.get("name") == OWN_DISTRIBUTION and name in project.get("entry-points", {}).get(group, {})
