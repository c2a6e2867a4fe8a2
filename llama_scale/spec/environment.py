"""Where ``${env:NAME}`` may stand: in paths, and nowhere else.

A spec must mean the same run on every machine; only *where* files lie may differ. Replacing is done by
``base.PathContext`` while paths are validated.
"""

from __future__ import annotations

from collections.abc import Iterator

from llama_scale.errors import Problem
from llama_scale.spec.fields import EACH, path_patterns
from llama_scale.spec.nodes import MappingNode, Node, Path, ScalarNode, SequenceNode
from llama_scale.spec.run import RunSpec


def misplaced_variables(root: Node) -> list[Problem]:
    """Return a problem for each ``${env:...}`` in a field that is not a path."""
    return [
        Problem(
            path=path,
            message=f"{value!r}: environment variables are replaced in path fields only, so that a spec means the same "
            "run on every machine",
            hint="write the value, or give it with --set",
            code="env",
        )
        for path, value in _with_variable(root, ())
        if tuple(EACH if isinstance(part, int) else part for part in path) not in path_patterns(RunSpec)
    ]


def _with_variable(node: Node, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(node, MappingNode):
        for key, item in node.items.items():
            yield from _with_variable(item, (*path, key))
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.items):
            yield from _with_variable(item, (*path, index))
    elif isinstance(node, ScalarNode) and isinstance(node.value, str) and "${env:" in node.value:
        yield path, node.value
