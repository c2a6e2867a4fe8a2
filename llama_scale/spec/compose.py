"""YAML text -> nodes with places, safely: bounded in size, depth and in what its aliases expand to.

PyYAML parses; composing is done here because its composer recurses, keeps only the last of two equal keys and puts no
bound on aliases ("billion laughs"). Nothing of a document's tags is executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from llama_scale.errors import Problem
from llama_scale.spec.nodes import MappingNode, Mark, Node, ScalarNode, SequenceNode
from llama_scale.spec.scalars import Scalar, parse_scalar

MAX_BYTES = 512 * 1024
MAX_DEPTH = 40
MAX_EXPANDED = 4 * 1024 * 1024
"""Bound on the text that a document stands for after its aliases are expanded, in characters (8 more a node)."""

_TAG = "tag:yaml.org,2002:"
_MERGE = "<<"


class ComposeError(Exception):
    """Carry the problems that keep text from being a document; ``load`` adds the file's name.

    Faulty scalars and keys that occur twice come all at once, with what stops reading, if anything does.
    """

    def __init__(self, message: str, *, mark: Mark | None, hint: str = "", code: str = "yaml") -> None:
        super().__init__(message)
        self.problem = Problem(
            path=(),
            message=message,
            hint=hint,
            code=code,
            line=mark.line if mark else None,
            column=mark.column if mark else None,
        )
        self.earlier: tuple[Problem, ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems, in the order of the text."""
        return (*self.earlier, self.problem)


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been read yet."""

    node: SequenceNode | MappingNode
    anchor: str | None
    key: tuple[str, Mark] | None = None
    merges: list[tuple[Node, Mark]] = field(default_factory=list)


def compose(text: str) -> Node | None:
    """Return the root of the one document in ``text``; None if it holds none.

    Raises:
        ComposeError: text that is not YAML, several documents, a duplicate or non-text key, an unknown alias or tag, a
            bound exceeded.
    """
    composer = _Composer()
    try:
        root = composer.run(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        syntax = _syntax_error(error)
        syntax.earlier = tuple(fault.problem for fault in composer.faults)
        raise syntax from error
    except yaml.reader.ReaderError as error:
        place = _place(text, error.position)
        raise ComposeError(
            f"character U+{_code_point(error.character):04X} is not allowed in YAML",
            mark=place,
            hint="remove it; inside double quotes it can be written as an escape",
        ) from error
    if composer.faults:
        *earlier, last = composer.faults
        last.earlier = tuple(fault.problem for fault in earlier)
        raise last
    return root


def _code_point(character: Any) -> int:
    return ord(character) if isinstance(character, str) else int(character)


def _place(text: str, index: int) -> Mark:
    before = text[:index]
    return Mark(before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1)


def _syntax_error(error: yaml.MarkedYAMLError) -> ComposeError:
    at = error.problem_mark or error.context_mark
    mark = Mark(at.line + 1, at.column + 1) if at else None
    problem = error.problem or "cannot be read"
    hint = ""
    if "'\\t'" in problem:
        problem, hint = "a tab character where indentation is expected", "indent with spaces"
    elif "mapping values are not allowed" in problem:
        hint = "a colon inside a value needs quotes around the value; check the indentation"
    elif "but got '{'" in problem:
        hint = 'a value with ${...} needs quotes inside [...] and {...}: {path: "${env:NAME}/x"}'
    elif "<stream end>" in problem or "end of stream" in problem:
        hint = "a bracket or quote is not closed"
    context = f" {error.context}" if error.context else ""
    return ComposeError(f"not valid YAML{context}: {problem}", mark=mark, hint=hint)


class _Composer:
    """Turn parse events into nodes with an explicit stack, so that depth is a number and not Python's recursion."""

    def __init__(self) -> None:
        self.anchors: dict[str, Node] = {}
        self.stack: list[_Open] = []
        self.root: Node | None = None
        self.faults: list[ComposeError] = []
        """What is wrong, but does not keep the rest from being read."""

    def run(self, events: Iterator[Any]) -> Node | None:
        try:
            return self._run(events)
        except ComposeError as error:
            self._locate(error)
            error.earlier = tuple(fault.problem for fault in self.faults)
            raise

    def _locate(self, error: ComposeError) -> None:
        path = tuple(
            len(entry.node.items) if isinstance(entry.node, SequenceNode) else entry.key[0] if entry.key else ""
            for entry in self.stack
            if isinstance(entry.node, SequenceNode) or entry.key
        )
        error.problem = replace(error.problem, path=path)

    def _keep(self, error: ComposeError) -> None:
        """Note a fault and read on: the document is refused at its end."""
        self._locate(error)
        self.faults.append(error)

    def _run(self, events: Iterator[Any]) -> Node | None:
        documents = 0
        for event in events:
            mark = Mark(event.start_mark.line + 1, event.start_mark.column + 1)
            match event:
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        raise ComposeError(
                            "the file holds several YAML documents", mark=mark, hint="one file is one run: split it"
                        )
                case yaml.ScalarEvent():
                    self._scalar(event, mark)
                case yaml.AliasEvent():
                    self._add(self._alias(event.anchor, mark), mark)
                case yaml.SequenceStartEvent():
                    _check_tag(event.tag, "seq", mark)
                    self._open(SequenceNode(items=[], mark=mark), event.anchor, mark)
                case yaml.MappingStartEvent():
                    _check_tag(event.tag, "map", mark)
                    self._open(MappingNode(items={}, mark=mark), event.anchor, mark)
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    self._close()
        return self.root

    def _open(self, node: SequenceNode | MappingNode, anchor: str | None, mark: Mark) -> None:
        if len(self.stack) >= MAX_DEPTH:
            raise ComposeError(f"nested more than {MAX_DEPTH} levels deep", mark=mark, code="yaml-too-deep")
        if anchor:
            self.anchors.pop(anchor, None)
        self._refuse_collection_as_key(mark)
        self.stack.append(_Open(node, anchor))

    def _refuse_collection_as_key(self, mark: Mark) -> None:
        if self.stack and isinstance(self.stack[-1].node, MappingNode) and self.stack[-1].key is None:
            raise ComposeError("a key must be text, not a list or a mapping", mark=mark, code="yaml-key")

    def _close(self) -> None:
        done = self.stack.pop()
        if isinstance(done.node, MappingNode):
            _apply_merges(done.node, done.merges)
        if done.anchor:
            self.anchors[done.anchor] = done.node
        self._add(done.node, done.node.mark)

    def _alias(self, name: str | None, mark: Mark) -> Node:
        if name is not None and name in self.anchors:
            return self.anchors[name]
        if any(entry.anchor == name for entry in self.stack):
            raise ComposeError(f"alias *{name} contains itself", mark=mark, code="yaml-alias")
        raise ComposeError(
            f"alias *{name} has no anchor &{name} before it",
            mark=mark,
            hint="quote the value if text that starts with * is meant",
            code="yaml-alias",
        )

    def _scalar(self, event: yaml.ScalarEvent, mark: Mark) -> None:
        value: Scalar = event.value
        try:
            value = _scalar_value(event, mark)
        except ComposeError as error:
            self._keep(error)
        node = ScalarNode(value=value, mark=mark, weight=8 + len(event.value))
        top = self.stack[-1] if self.stack else None
        if top and isinstance(top.node, MappingNode) and top.key is None:
            try:
                _set_key(top, top.node, value, event, mark)
            except ComposeError as error:
                self._keep(error)
                top.key = (event.value, mark)
            return
        if event.anchor:
            self.anchors[event.anchor] = node
        self._add(node, mark)

    def _add(self, node: Node, mark: Mark) -> None:
        """Put a finished node into the collection that is open, and count what it adds."""
        if not self.stack:
            self.root = node
            return
        top = self.stack[-1]
        parent = top.node
        key_length = len(top.key[0]) if top.key else 0
        if isinstance(parent, SequenceNode):
            parent.items.append(node)
        elif top.key is None:
            # Only an alias gets here: a scalar became the key, a collection was refused when it opened.
            if not isinstance(node, ScalarNode):
                raise ComposeError("a key must be text, not a list or a mapping", mark=mark, code="yaml-key")
            _set_key(top, parent, node.value, None, mark)
            return
        else:
            key, key_mark = top.key
            top.key = None
            if key == _MERGE:
                top.merges.append((node, key_mark))
            else:
                parent.items[key] = node
                parent.keys[key] = key_mark
        parent.weight += node.weight + key_length
        parent.height = max(parent.height, node.height + 1)
        if len(self.stack) + node.height > MAX_DEPTH:
            raise ComposeError(
                f"nested more than {MAX_DEPTH} levels deep through its aliases", mark=mark, code="yaml-too-deep"
            )
        if parent.weight > MAX_EXPANDED:
            raise ComposeError(
                f"aliases expand the document to more than {MAX_EXPANDED // 1024**2} MiB",
                mark=mark,
                hint="write the values out, or use fewer aliases of aliases",
                code="yaml-bomb",
            )


def _set_key(top: _Open, node: MappingNode, value: Scalar, event: yaml.ScalarEvent | None, mark: Mark) -> None:
    if not isinstance(value, str):
        shown = event.value if event else value
        raise ComposeError(
            f"the key {shown!s} is not text", mark=mark, hint=f'put it in quotes: "{shown!s}"', code="yaml-key"
        )
    if value in node.items or (value == _MERGE and top.merges):
        first = node.keys.get(value) or top.merges[0][1]
        raise ComposeError(
            f"the key {value!r} occurs twice in one mapping (first in line {first.line})",
            mark=mark,
            hint="keep one of them",
            code="duplicate-key",
        )
    top.key = (value, mark)


def _apply_merges(node: MappingNode, merges: list[tuple[Node, Mark]]) -> None:
    """Add the keys of ``<<`` mappings that the mapping does not set itself; earlier ones win over later ones."""
    for merged, mark in merges:
        sources = merged.items if isinstance(merged, SequenceNode) else [merged]
        for source in sources:
            if not isinstance(source, MappingNode):
                raise ComposeError(
                    "a merge key << takes a mapping or a list of mappings",
                    mark=mark,
                    hint="write <<: *anchor where the anchor is a mapping",
                    code="yaml-merge",
                )
            for key, value in source.items.items():
                if key not in node.items:
                    node.items[key] = value
                    node.keys[key] = source.keys[key]


def _check_tag(tag: str | None, kind: str, mark: Mark) -> None:
    if tag not in (None, "!", _TAG + kind):
        raise ComposeError(f"the tag {tag!r} is not allowed here", mark=mark, hint="remove the tag", code="yaml-tag")


def _scalar_value(event: yaml.ScalarEvent, mark: Mark) -> Scalar:
    text: str = event.value
    if "\x00" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ComposeError(
            f"{text[:40]!r} holds a NUL or half of a surrogate pair", mark=mark, hint="remove the escape"
        )
    plain = event.style in (None, "")
    tag = event.tag
    if tag is None or tag == "!":
        if not plain or tag == "!":
            return text
        try:
            return parse_scalar(text)
        except ValueError as error:
            raise ComposeError(str(error), mark=mark, code="yaml-number") from error
    return _tagged_value(tag, text, mark)


def _tagged_value(tag: str, text: str, mark: Mark) -> Scalar:
    expected: dict[str, tuple[type, ...]] = {
        "str": (str,), "int": (int,), "float": (float, int), "bool": (bool,), "null": (type(None),),
    }  # fmt: skip
    name = tag.removeprefix(_TAG)
    if not tag.startswith(_TAG) or name not in expected:
        _check_tag(tag, "str", mark)
    if name == "str":
        return text
    try:
        value = parse_scalar(text)
    except ValueError as error:
        raise ComposeError(str(error), mark=mark, code="yaml-number") from error
    if type(value) not in expected[name]:
        raise ComposeError(f"{text!r} is not of the type !!{name}", mark=mark, hint="remove the tag", code="yaml-tag")
    return float(value) if name == "float" and isinstance(value, int) else value
