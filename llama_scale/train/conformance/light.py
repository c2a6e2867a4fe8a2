"""What holds for every plugin before anything is built: a light descriptor, pure parameters, few imports."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from llama_scale.errors import Problem
from llama_scale.extensions import discover
from llama_scale.extensions.conformance import CheckRequest
from llama_scale.spec.base import PathContext
from llama_scale.spec.plugin_options import Filled, Use, fill_options
from llama_scale.spec.view import View
from llama_scale.train.conformance.report import Failed

_HEAVY = ("torch", "numpy", "transformers", "deepspeed", "megatron", "safetensors", "tokenizers")
_PROBE = """
import sys
from llama_scale.spec.plugins import catalogue
descriptor = catalogue().load(sys.argv[1], sys.argv[2])
descriptor.options.model_json_schema()
print(*sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[3:])))
"""


def descriptor_is_light(request: CheckRequest) -> str:
    """Check that loading the descriptor imports nothing heavy: `validate` and editors do it all the time.

    Raises:
        Failed: It does, or it fails in a process of its own.
    """
    command = [sys.executable, "-c", _PROBE, request.group, request.name, *_HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["it ended without a message"])[-1])
    found = (done.stdout.splitlines() or [""])[-1]
    if found:
        raise Failed(f"the descriptor's module imports {found}; import them in the implementation's module only")
    return "imports nothing heavy"


def use_of(request: CheckRequest, section: str, *, folder: Path | None = None) -> Use:
    """Return the plugin with its options, checked as a spec's would be.

    Args:
        request: The plugin.
        section: ``adapters`` or ``tasks``.
        folder: Where relative paths start; None: they stay as they are.

    Raises:
        Failed: The options have faults.
    """
    context = None if folder is None else PathContext(folder=str(folder), env=os.environ)
    filled = _fill(request, section, request.options, context)
    again = _fill(request, section, filled.sections[section][0].options, None)
    if again.uses[0].options != filled.uses[0].options:
        raise Failed("options that were filled in and written out do not read back to the same")
    return filled.uses[0]


def _fill(request: CheckRequest, section: str, options: Mapping[str, Any], context: PathContext | None) -> Filled:
    item = View(name="probe", kind=request.name, options=dict(options))
    filled = fill_options({section: (item,)}, context=context)
    if filled.problems:
        raise Failed("; ".join(_word(problem) for problem in filled.problems))
    return filled


def _word(problem: Problem) -> str:
    where = problem.dotted.partition(".")[2] or "options"
    return f"{where}: {problem.message}" + (f" ({problem.hint})" if problem.hint else "")


def same_twice(ask: Callable[[], Any]) -> Any:
    """Return what ``ask`` returns, checking that it returns the same again.

    Raises:
        Failed: It does not: it is not pure.
    """
    first, second = ask(), ask()
    if first != second:
        raise Failed("the descriptor's parameters are not a pure function: two calls gave different answers")
    return first


def implementation_of(request: CheckRequest, descriptor: Any, base: type) -> str:
    """Check that the implementation can be loaded and is a class of the right kind.

    Raises:
        Failed: It is not a subclass of ``base``.
    """
    found = discover.implementation(descriptor)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise Failed(f"{descriptor.implementation} is no subclass of {base.__module__}.{base.__name__}")
    return descriptor.implementation


def imports_only(descriptor: Any, allowed: Collection[str]) -> str:
    """Check what the implementation's module imports, since that one file is copied into exported models.

    Args:
        descriptor: The plugin's.
        allowed: Modules it may import beside Python's own; packages are meant whole.

    Raises:
        Failed: It imports something else.
    """
    module = descriptor.implementation.partition(":")[0]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise Failed(f"{module} has no file, so it cannot be copied")
    wrong = [name for name in _imported(Path(spec.origin)) if not _may(name, allowed)]
    if wrong:
        raise Failed(
            f"{module} imports {', '.join(wrong)}; this one file is copied into exported models, which have "
            f"{', '.join(sorted(allowed))} and Python's own modules only"
        )
    return f"{module} imports {', '.join(sorted(allowed))} at most"


def _imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("." * node.level + (node.module or ""))
    return sorted(set(names))


def _may(name: str, allowed: Collection[str]) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names or any(
        name == module or name.startswith(f"{module}.") for module in allowed
    )
