"""Where ``${env:NAME}`` may stand: in paths, and nowhere else.

A spec must mean the same run on every machine; only *where* files lie may differ. Replacing is done by
``base.PathContext`` while paths are validated.
"""

from __future__ import annotations

from collections.abc import Sequence

from llama_scale.errors import Problem
from llama_scale.spec.fields import EACH, path_patterns
from llama_scale.spec.nodes import Node, Path, texts
from llama_scale.spec.plugin_options import Use
from llama_scale.spec.run import RunSpec


def misplaced_variables(root: Node, uses: Sequence[Use] = ()) -> list[Problem]:
    """Return a problem for each ``${env:...}`` in a field that is not a path.

    Args:
        root: The document.
        uses: The plugins that it uses: their models say which of their options are paths.
    """
    return [
        Problem(
            path=path,
            message=f"{value!r}: environment variables are replaced in path fields only, so that a spec means the same "
            "run on every machine",
            hint="write the value, or give it with --set",
            code="env",
        )
        for path, value in texts(root)
        if "${env:" in value and not _is_path(path, uses)
    ]


def _is_path(path: Path, uses: Sequence[Use]) -> bool:
    for use in uses:
        size = len(use.options_path)
        if path[:size] == use.options_path:
            return _pattern(path[size:]) in path_patterns(use.descriptor.options)
    if _pattern(path[:3]) in _PLUGIN_OPTIONS or path[:2] in _PLUGIN_OPTIONS:
        return True  # of a plugin that is not there, which is a problem of its own
    return _pattern(path) in path_patterns(RunSpec)


def _pattern(path: Path) -> tuple[str, ...]:
    return tuple(EACH if isinstance(part, int) else part for part in path)


_PLUGIN_OPTIONS = {("adapters", EACH, "options"), ("tasks", EACH, "options"), ("mixture", "gate_options")}
