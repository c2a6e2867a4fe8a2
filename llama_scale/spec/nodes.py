"""The composed YAML document: values with the place where each was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from llama_scale.spec.scalars import Scalar


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the file (1-based), or the ``--set`` argument that gave a value."""

    line: int | None = None
    column: int | None = None
    override: str | None = None


@dataclass(slots=True, kw_only=True)
class ScalarNode:
    """A word, number or text."""

    value: Scalar
    mark: Mark
    weight: int = 8
    height: int = 1

    def data(self) -> Scalar:
        """Return the plain value."""
        return self.value


@dataclass(slots=True, kw_only=True)
class SequenceNode:
    """A list."""

    items: list[Node]
    mark: Mark
    weight: int = 8
    height: int = 1

    def data(self) -> list[Any]:
        """Return the plain list."""
        return [item.data() for item in self.items]


@dataclass(slots=True, kw_only=True)
class MappingNode:
    """A mapping; merge keys are resolved already. ``keys`` tells where each key was written."""

    items: dict[str, Node]
    mark: Mark
    keys: dict[str, Mark] = field(default_factory=dict)
    weight: int = 8
    height: int = 1

    def data(self) -> dict[str, Any]:
        """Return the plain dict."""
        return {key: item.data() for key, item in self.items.items()}


Node: TypeAlias = ScalarNode | SequenceNode | MappingNode
Path: TypeAlias = tuple[str | int, ...]


def child(node: Node, part: str | int) -> Node | None:
    """Return the node below a key or an index, None if there is none."""
    if isinstance(node, MappingNode) and isinstance(part, str):
        return node.items.get(part)
    if isinstance(node, SequenceNode) and isinstance(part, int) and 0 <= part < len(node.items):
        return node.items[part]
    return None


def texts(node: Node, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield the values below a node that are texts, each with its path."""
    if isinstance(node, MappingNode):
        for key, item in node.items.items():
            yield from texts(item, (*path, key))
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.items):
            yield from texts(item, (*path, index))
    elif isinstance(node.value, str):
        yield path, node.value


def find_mark(root: Node, path: Sequence[str | int], *, at_key: bool = False) -> Mark:
    """Return where the value at ``path`` was written, or its nearest ancestor that exists.

    With ``at_key`` (unknown key) or when the value is missing or a whole section, the place is that of the key: that is
    what a reader looks for in the file.
    """
    node, mark = root, root.mark
    for depth, part in enumerate(path):
        below = child(node, part)
        if below is None:
            break
        last = depth == len(path) - 1
        if isinstance(node, MappingNode) and isinstance(part, str):
            use_key = not isinstance(below, ScalarNode) or (last and at_key)
            mark = node.keys[part] if use_key else below.mark
        else:
            mark = below.mark
        node = below
    return mark
