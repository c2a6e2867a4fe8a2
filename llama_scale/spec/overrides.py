"""``--set a.b=c``: values that replace or add to those of the file before it is checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import yaml

from llama_scale.errors import Problem
from llama_scale.spec.compose import ComposeError, compose
from llama_scale.spec.nodes import MappingNode, Mark, Node, Path, ScalarNode, SequenceNode

_PART = re.compile(r"(?P<key>[^.\[\]=\s]+)|\[(?P<index>[0-9]+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One parsed ``--set``."""

    text: str
    path: Path
    value: Node


class OverrideError(Exception):
    """Carry the problem of one ``--set``."""

    def __init__(self, text: str, message: str, hint: str = "", path: Path = ()) -> None:
        super().__init__(message)
        self.problem = Problem(path=path, message=f"--set {text}: {message}", hint=hint, code="set")


def apply_overrides(root: Node, overrides: Sequence[str]) -> tuple[Node, list[Problem]]:
    """Return the document with all overrides that make sense applied in order, and the problems of the others."""
    problems: list[Problem] = []
    parsed: list[Override] = []
    for text in overrides:
        try:
            parsed.append(parse_override(text))
        except OverrideError as error:
            problems.append(error.problem)
    root = _without_other_lengths(root, parsed)
    for override in parsed:
        try:
            root = _replace(root, override, depth=0)
        except OverrideError as error:
            problems.append(error.problem)
    return root, problems


_LENGTHS = ("steps", "tokens", "epochs")
"""Keys of ``train`` of which a spec has one."""


def _without_other_lengths(root: Node, overrides: Sequence[Override]) -> Node:
    """Return the document without the length that an override gives in another unit."""
    given = {
        override.path[1]
        for override in overrides
        if len(override.path) == 2 and override.path[0] == "train" and override.value.data() is not None
    } & set(_LENGTHS)
    train = root.items.get("train") if isinstance(root, MappingNode) else None
    if not given or not isinstance(root, MappingNode) or not isinstance(train, MappingNode):
        return root
    left_out = set(_LENGTHS) - given
    items = {key: item for key, item in train.items.items() if key not in left_out}
    keys = {key: mark for key, mark in train.keys.items() if key in items}
    return replace(root, items={**root.items, "train": replace(train, items=items, keys=keys)})


def parse_override(text: str) -> Override:
    """Read ``a.b[0].c=value``; the value is YAML (a scalar, or a list or mapping in flow style).

    Raises:
        OverrideError: no ``=``, a path that is not keys and indexes, a value that is not YAML or that a comment ends.
    """
    left, equals, right = text.partition("=")
    if not equals:
        raise OverrideError(text, "has no '='", "write --set section.key=value")
    path = _parse_path(text, left.strip())
    try:
        value = compose(right)
    except ComposeError as error:
        raise OverrideError(text, error.problem.message, error.problem.hint, path) from error
    if comment := _comment(right):
        message = f"{comment!r} would be left out, as YAML takes '#' for a comment; put the value in double quotes"
        raise OverrideError(text, message, "the quotes must reach llama-scale: --set 'section.key=\"a #b\"'", path)
    mark = Mark(override=text)
    if value is None:
        value = ScalarNode(value=None, mark=mark)
    return Override(text=text, path=path, value=_remark(value, mark))


def _comment(value: str) -> str:
    """Return the comment behind a value; a text such as ``Be brief. #1 rule`` must not lose its end in silence."""
    document = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent, yaml.DocumentEndEvent)
    events = yaml.parse(value, Loader=yaml.SafeLoader)
    marks = [event.end_mark for event in events if not isinstance(event, document)]
    end = max((mark.index for mark in marks if mark is not None), default=0)
    rest = value[end:].strip()
    return rest if rest.startswith("#") else ""


def _parse_path(text: str, left: str) -> Path:
    parts: list[str | int] = []
    position = 0
    while position < len(left):
        if parts and left[position] == ".":
            position += 1
        elif parts and left[position] != "[":
            break
        match = _PART.match(left, position)
        if match is None or (not parts and match["index"]):
            break
        parts.append(match["key"] if match["key"] else int(match["index"]))
        position = match.end()
    if not parts or position < len(left) or left.endswith("."):
        raise OverrideError(
            text, f"{left!r} is not a field path", "write keys joined by dots, and [0] for a list's first item"
        )
    return tuple(parts)


def _remark(node: Node, mark: Mark) -> Node:
    if isinstance(node, MappingNode):
        items = {key: _remark(item, mark) for key, item in node.items.items()}
        return replace(node, items=items, keys=dict.fromkeys(items, mark), mark=mark)
    if isinstance(node, SequenceNode):
        return replace(node, items=[_remark(item, mark) for item in node.items], mark=mark)
    return replace(node, mark=mark)


def _replace(node: Node | None, override: Override, *, depth: int) -> Node:
    """Return a copy of ``node`` with the value put in; nodes that an alias shares are not changed."""
    if depth == len(override.path):
        return override.value
    part = override.path[depth]
    mark = override.value.mark
    empty = node is None or (isinstance(node, ScalarNode) and node.value is None)
    if isinstance(part, int):
        items = list(node.items) if isinstance(node, SequenceNode) else []
        if not empty and not isinstance(node, SequenceNode):
            raise _not_a(override, depth, "list")
        if part > len(items):
            raise OverrideError(
                override.text,
                f"index {part} is beyond the list's {len(items)} items",
                f"use 0 to {len(items)} ({len(items)} appends)",
                override.path[: depth + 1],
            )
        below = _replace(items[part] if part < len(items) else None, override, depth=depth + 1)
        items[part : part + 1] = [below]
        return SequenceNode(items=items, mark=node.mark if node else mark)
    if not empty and not isinstance(node, MappingNode):
        raise _not_a(override, depth, "mapping")
    old = node if isinstance(node, MappingNode) else MappingNode(items={}, mark=node.mark if node else mark)
    below = _replace(old.items.get(part), override, depth=depth + 1)
    keys = {**old.keys, part: old.keys.get(part, mark) if depth + 1 < len(override.path) else mark}
    return replace(old, items={**old.items, part: below}, keys=keys)


def _not_a(override: Override, depth: int, kind: str) -> OverrideError:
    parent, part = Problem(path=override.path[:depth], message="").dotted, str(override.path[depth])
    hint = f"write {parent}[{part}] for an item of a list" if part.isdecimal() else "set the whole value"
    return OverrideError(override.text, f"{parent} is not a {kind}", hint, override.path[:depth])
