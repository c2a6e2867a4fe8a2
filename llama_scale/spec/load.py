"""Spec file -> checked and resolved ``RunSpec``; and back to YAML.

>>> from llama_scale.spec.load import load_spec  # doctest: +SKIP
>>> load_spec("run.yaml", overrides=["parallel.tensor=2"]).parallel.tensor  # doctest: +SKIP
2
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama_scale.errors import Problem, SpecError
from llama_scale.spec.base import PathContext
from llama_scale.spec.compose import ComposeError, compose
from llama_scale.spec.environment import misplaced_variables
from llama_scale.spec.launcher_plugin import SECTION, take_out
from llama_scale.spec.nodes import MappingNode, Node, find_mark
from llama_scale.spec.overrides import apply_overrides
from llama_scale.spec.plugin_options import fill_options
from llama_scale.spec.plugin_rules import check_uses
from llama_scale.spec.resolve import resolve, resolve_model
from llama_scale.spec.rules import check_rules
from llama_scale.spec.run import RunSpec
from llama_scale.spec.salvage import salvage
from llama_scale.spec.secret import find_secrets
from llama_scale.spec.source import SourceError, read_text
from llama_scale.spec.structure import check_structure, integral, show
from llama_scale.spec.view import Absent, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What reading one file gave: a resolved spec, or its problems (one of the two is empty)."""

    spec: RunSpec | None
    problems: tuple[Problem, ...]


def load_spec(
    path: str | os.PathLike[str], *, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> RunSpec:
    """Return the checked and resolved spec of one file.

    Args:
        path: The YAML file.
        overrides: ``a.b=value`` texts (``--set``) that replace values of the file.
        env: Where ``${env:NAME}`` is looked up; the process's environment by default.

    Raises:
        SpecError: with every problem of the file.
    """
    loaded = check_file(path, overrides=overrides, env=env)
    if loaded.spec is None:
        raise SpecError(loaded.problems)
    return loaded.spec


def load_run_spec(path: str | os.PathLike[str], *, overrides: Sequence[str] = ()) -> RunSpec:
    """Return the resolved spec that a run folder holds.

    Unlike ``load_spec`` this does not look at the folder of the weights, which may be gone once a run has started. A
    spec that version 0.1 wrote has no ``train.from``: it is read as that version trained.

    Args:
        path: The run folder's ``spec.yaml``.
        overrides: As for ``load_spec``.

    Raises:
        SpecError: with every problem of the file.
    """
    loaded = check_file(path, overrides=overrides, stored=True)
    if loaded.spec is None:
        raise SpecError(loaded.problems)
    return loaded.spec


def check_file(
    path: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    stored: bool = False,
) -> Loaded:
    """Do what ``load_spec`` (``stored``: ``load_run_spec``) does and return the problems instead of raising them."""
    name = os.fspath(path)
    try:
        text = read_text(Path(name))
    except SourceError as error:
        return Loaded(spec=None, problems=(error.problem,))
    return check_text(text, name=name, overrides=overrides, env=env, stored=stored)


def check_text(
    text: str,
    *,
    name: str,
    folder: str | None = None,
    overrides: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    stored: bool = False,
) -> Loaded:
    """Check a spec that is given as text.

    Args:
        text: The YAML.
        name: What problems call the file.
        folder: Absolute folder that relative paths start at; by default, the one that the file ``name`` is in.
        overrides: As for ``load_spec``.
        env: As for ``load_spec``.
        stored: It is the resolved spec of a run folder, see ``load_run_spec``.
    """
    try:
        root = compose(text)
    except ComposeError as error:
        return Loaded(spec=None, problems=tuple(replace(problem, file=name) for problem in error.problems))
    if not isinstance(root, MappingNode):
        return Loaded(spec=None, problems=(_not_a_mapping(name, root),))
    if folder is None:
        folder = os.path.abspath(os.path.dirname(name))  # noqa: PTH100, PTH120 - Path.absolute keeps ".."
    context = PathContext(folder=folder, env=os.environ if env is None else env)
    changed, problems = apply_overrides(root, overrides)
    spec, found = _check(changed, context, stored=stored)
    problems += found
    if spec is not None and not problems:
        return Loaded(spec=spec, problems=())
    return Loaded(spec=None, problems=_located(problems, changed, name))


def _check(root: Node, context: PathContext, *, stored: bool) -> tuple[RunSpec | None, list[Problem]]:
    data = root.data()
    if not isinstance(data, dict):  # an override replaces single values, never the document
        raise AssertionError(type(data))
    if stored:
        _add_start(data)
    problems = find_secrets(root)
    plugin = take_out(data, context=context)
    rest = data if plugin is None else plugin.data
    spec, structural = check_structure(rest, context=context)
    problems += structural
    sections = dict(spec) if spec is not None else salvage(integral(rest), structural, context=context)
    if plugin is not None:
        problems += plugin.problems
        sections.pop(SECTION, None)
        sections |= {} if plugin.launcher is None else {SECTION: plugin.launcher}
    resolution = resolve(
        sections,
        RunSpec.model_fields,
        resolve_model=resolve_model,
        read_hostfile=lambda path: Path(path).read_text(encoding="utf-8"),
        # A run's spec has the name already; one of version 0.1 does not say how its user wrote the path.
        written=lambda key: None if stored else _written(data, key, context),
    )
    filled = fill_options(resolution.sections, context=context)
    view = View(**filled.sections)
    problems += misplaced_variables(root, filled.uses)
    problems += [*resolution.problems, *filled.problems]
    problems += check_rules(view, resolution.broken)
    problems += check_uses(view, filled.uses, resolution.broken)
    problems += _check_tokenizer(filled.sections, stored=stored)
    problems += [] if stored else _check_weights(filled.sections, data)
    return (RunSpec.model_construct(**filled.sections) if not problems else None), problems


def _check_tokenizer(sections: Mapping[str, Any], *, stored: bool) -> list[Problem]:
    tokenizer, model = sections.get("tokenizer"), sections.get("model")
    with suppress(Absent):  # a value that it follows from is faulty, which is reported already
        if tokenizer is not None and tokenizer.kind == "hf" and model is not None:
            from llama_scale.spec.hf_tokenizer import check_vocabulary  # lazy: only specs that name such a tokenizer

            return check_vocabulary(tokenizer, model.vocab_size, settings=not stored)
    return []


def _add_start(data: dict[str, Any]) -> None:
    """Say where the weights of a run of version 0.1 came from: adapters without a folder had a random base."""
    train, model = data.get("train"), data.get("model")
    if isinstance(train, dict) and isinstance(model, dict):
        train.setdefault("from", "scratch" if model.get("init_from") is None else "weights")


def _written(data: Mapping[str, Any], key: str, context: PathContext) -> str | None:
    """Return a path of the section model as its user wrote it, variables replaced."""
    model = data.get("model")
    text = model.get(key) if isinstance(model, dict) else None
    try:
        return context.expand(text) if isinstance(text, str) else None
    except ValueError:  # reported already
        return None


def _check_weights(sections: Mapping[str, Any], data: Mapping[str, Any]) -> list[Problem]:
    """Look into the folder of the weights, unless it is the job's image that has it."""
    launcher, model, train = (sections.get(name) for name in ("launcher", "model", "train"))
    if launcher is None or launcher.kind == "kubernetes" or getattr(launcher, "container", None) is not None:
        return []
    with suppress(Absent):  # a value that it follows from is faulty, which is reported already
        if model is not None and train is not None and train.from_ == "weights" and model.init_from is not None:
            from llama_scale.spec.start_folder import check_start  # lazy: only specs that start from weights

            written = data.get("model")
            named = isinstance(written, dict) and written.get("init_from") is not None
            return check_start(model, key="init_from" if named else "path")
    return []


def _not_a_mapping(name: str, root: Node | None) -> Problem:
    if root is None:
        return Problem(
            path=(), message="the file is empty", hint="`llama-scale init` writes a spec", code="empty", file=name
        )
    return Problem(
        path=(),
        message=f"a spec is a mapping of sections, and this file holds {show(root.data())}",
        hint="start with version: 1; `llama-scale init` writes a spec",
        code="type",
        file=name,
        line=root.mark.line,
        column=root.mark.column,
    )


def _located(problems: Sequence[Problem], root: Node, name: str) -> tuple[Problem, ...]:
    """Give each problem its place, in the order of the file; problems of ``--set`` values name the argument."""
    placed: list[Problem] = []
    for problem in problems:
        mark = find_mark(root, problem.path, at_key=problem.code == "unknown-key")
        message = problem.message
        if problem.code == "set":
            placed.append(replace(problem, file=name))
            continue
        if mark.override is not None:
            message += f" (from --set {show_override(mark.override)})"
        placed.append(replace(problem, message=message, file=name, line=mark.line, column=mark.column))
    unique = dict.fromkeys(placed)
    return tuple(sorted(unique, key=lambda p: (p.line or 0, p.column or 0)))


def show_override(text: str) -> str:
    """Return a ``--set`` argument as it may be shown: without a value that looks like a secret."""
    key, _, value = text.partition("=")
    shown = show(value)
    return f"{key}={value}" if not shown.startswith("(") and len(value) <= 60 else f"{key}={shown}"


def dump_spec(spec: RunSpec) -> str:
    """Return YAML that ``load_spec`` reads back to an equal spec."""
    from llama_scale.spec.dump import dump_yaml

    return dump_yaml(_plain(spec))


def spec_digest(spec: RunSpec) -> str:
    """Return the SHA-256 (hex) of the spec's canonical JSON: sorted keys, no spaces, ASCII."""
    text = json.dumps(_plain(spec), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _plain(spec: RunSpec) -> dict[str, Any]:
    plain = spec.model_dump(mode="json", by_alias=True)
    for section, key in _ADDED_LATER:
        if plain[section][key] is None:
            del plain[section][key]
    return plain


_ADDED_LATER = (("train", "epochs"),)
"""Keys that version 0.1 did not have, left out where they say nothing: the digest of its specs stays what it was."""
