"""``llama-scale plugins check``: hold a plugin to the interface, on real models and processes on this CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_scale.cli.output import emit, emit_json, say
from llama_scale.columns import columns
from llama_scale.errors import PluginError
from llama_scale.extensions.conformance import Check, CheckRequest, passed, run_suite
from llama_scale.libraries import missing_libraries
from llama_scale.spec.compose import ComposeError, compose
from llama_scale.spec.nearby import suggest
from llama_scale.spec.nodes import MappingNode
from llama_scale.spec.plugins import GROUPS, NOUNS, Catalogue, catalogue

_MARKS = {"passed": "ok", "failed": "FAILED", "not applicable": "-"}


class Kind(StrEnum):
    """Groups of plugins, as people call them."""

    ADAPTER = "adapter"
    TASK = "task"
    GATE = "gate"
    LAUNCHER = "launcher"


def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of an installed plugin (`plugins list`).")],
    *,
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="What it is, where several kinds of plugins have that name.")
    ] = None,
    options: Annotated[
        str | None,
        typer.Option("--options", metavar="YAML", help="Its options, as in a spec, e.g. '{rank: 4}'; or @FILE."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Run the conformance suite on a plugin; the exit status is 4 if a check fails.

    Example: `llama-scale plugins check lora --options '{rank: 4, targets: [q_proj]}'`.

    An adapter is trained on tiny models: identity at initialisation, gradients only where declared, the same losses,
    gradient norms and weights under tensor, sequence and pipeline parallelism as in one process, saving and resuming,
    merging, export. A task needs sample rows, from its descriptor or from files that --options names.
    """
    group = _group(catalogue(), name, kind)
    given = _options(options)
    catalogue().load(group, name)
    if missing_libraries("torch", "megatron"):
        raise PluginError("the suite needs torch and megatron-core; run `pip install 'llama-scale[train]'`")
    if NOUNS[group] != "launcher":
        say("checked on tiny models whose weights are drawn from a seed")
    checks = run_suite(CheckRequest(group=group, name=name, options=given))
    if as_json:
        emit_json([asdict(made) for made in checks])
    else:
        _write(checks)
    if not passed(checks):
        failed = [made for made in checks if made.status == "failed"]
        raise PluginError(f"{NOUNS[group]} {name!r} fails {len(failed)} of {len(checks)} checks: {failed[0].name}")


def _group(installed: Catalogue, name: str, kind: Kind | None) -> str:
    """Return the group that a name is in.

    Raises:
        PluginError: Nothing has that name, or it is in several groups and none was chosen.
    """
    if kind is not None:
        group = next(group for group in GROUPS if NOUNS[group] == kind.value)
        installed.owner(group, name)
        return group
    found = [group for group in GROUPS if name in installed.names(group)]
    if not found:
        names = sorted({entry.name for entry in installed.entries})
        raise PluginError(f"no plugin is called {name!r}; {suggest(name, names)}")
    if len(found) > 1:
        kinds = " and ".join(NOUNS[group] for group in found)
        raise PluginError(f"{name!r} is the name of several plugins: {kinds}; choose one with --kind")
    return found[0]


def _options(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        if text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        node = compose(text)
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{text[1:]} cannot be read: {error}") from error
    except ComposeError as error:
        raise typer.BadParameter(f"this is no YAML: {error.problem.message}") from error
    if not isinstance(node, MappingNode):
        raise typer.BadParameter("options are a mapping, e.g. '{rank: 4}'")
    data: dict[str, Any] = node.data()
    return data


def _write(checks: Sequence[Check]) -> None:
    emit(columns([(_MARKS[made.status], made.name, made.detail) for made in checks]))
