"""The package's inner borders: who may import whom, what stays out of fast commands, how large things may grow."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live_runs import environment, write_spec

PACKAGE = Path(__file__).resolve().parent.parent / "llama_scale"

_BASE = {"columns", "errors", "libraries", "resources"}
# Part -> parts it may import, itself aside (docs/architecture.md).
ALLOWED: dict[str, set[str]] = {
    "columns": set(),
    "errors": set(),
    "libraries": set(),
    "resources": set(),
    "__init__": set(),
    "__main__": {"cli"},
    "spec": _BASE,
    "layout": {"spec", *_BASE},
    "plan": {"layout", "spec", *_BASE},
    "engines": {"plan", "layout", "spec", *_BASE},
    "extensions": {"plan", "layout", "spec", "data", *_BASE},
    "launchers": {"engines", "extensions", "plan", "layout", "spec", *_BASE},
    "checkpoint": {"layout", "spec", *_BASE},
    "data": {"spec", *_BASE},
    "convert": {"extensions", "spec", "layout", "plan", "checkpoint", "data", *_BASE},
    "evaluation": {"tasks", "extensions", "runs", "convert", "data", "checkpoint", "spec", *_BASE},
    "runs": {"spec", "plan", "launchers", "checkpoint", "data", "extensions", *_BASE},
    "charts": {"plan", "layout", "spec", *_BASE},
    "tune": {"runs", "launchers", "engines", "extensions", "plan", "layout", "spec", *_BASE},
    "simulate": {"runs", "launchers", "extensions", "data", "checkpoint", "plan", "spec", *_BASE},
    "report": {"charts", "runs", "launchers", "plan", "layout", "spec", *_BASE},
    "adapters": {"extensions", "spec", *_BASE},
    "gates": {"extensions", "spec", *_BASE},
    "tasks": {"extensions", "spec", "data", *_BASE},
}
ALLOWED["train"] = set(ALLOWED) - {"launchers", "__init__", "__main__"} | {"layout"}
ALLOWED["cli"] = set(ALLOWED) - {"train", "__main__"}
# Single modules that stand above their part.
EXCEPTIONS: dict[str, set[str]] = {}

HEAVY = {"torch", "numpy", "transformers", "deepspeed", "megatron", "safetensors", "sentencepiece", "tokenizers"}
# Parts that may import heavy packages at the top of a module; elsewhere only inside functions.
HEAVY_PARTS = {"train", "checkpoint", "convert", "data", "evaluation"}
# Single modules of other parts that hold tensors: the heavy side of plugins, and the built-in ones' (*_module.py).
HEAVY_MODULES = {"extensions/adapter.py", "extensions/gate.py", "extensions/task.py"}
LIGHT_MODULES = {
    *("checkpoint/__init__.py", "checkpoint/bases.py", "checkpoint/manifest.py", "checkpoint/pieces.py"),
    *("convert/__init__.py", "convert/start.py"),
}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50


def _modules() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 100, "the glob does not find the package"
    return found


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imports(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_parts_import_in_one_direction() -> None:
    wrong = []
    for path in _modules():
        part = _part(path)
        assert part in ALLOWED, f"{part} has no row in this test's table"
        allowed = ALLOWED[part] | {part} | EXCEPTIONS.get(path.relative_to(PACKAGE).as_posix(), set())
        for name in _imports(ast.walk(_tree(path))):
            words = name.split(".")
            if words[0] == "llama_scale" and len(words) > 1 and words[1] not in allowed | {"__version__"}:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_light_parts_import_no_heavy_package_at_module_level() -> None:
    wrong = []
    for path in _modules():
        relative = path.relative_to(PACKAGE).as_posix()
        if (
            relative in HEAVY_MODULES
            or relative.endswith("_module.py")
            or (_part(path) in HEAVY_PARTS and relative not in LIGHT_MODULES)
        ):
            continue
        for name in _imports(_tree(path).body):
            if name.split(".")[0] in HEAVY:
                wrong.append(f"{relative} imports {name}")
    assert wrong == []


def test_files_and_functions_are_short() -> None:
    long = []
    for path in _modules():
        relative = path.relative_to(PACKAGE).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            long.append(f"{relative}: {lines} lines")
        for node in ast.walk(_tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = _code_lines(node)
                if length > MAX_FUNCTION_LINES:
                    long.append(f"{relative}: {node.name} has {length} lines")
    assert long == []


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines without signature and docstring, which grow with what they explain."""
    body = node.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and len(body) > 1:
        body = body[1:]
    assert node.end_lineno is not None
    return node.end_lineno - body[0].lineno + 1


_PROBE = """
import json, runpy, sys
sys.argv[0] = "llama-scale"
try:
    runpy.run_module("llama_scale", run_name="__main__")
except SystemExit as end:
    code = end.code
else:
    code = 0
tops = sorted({name.partition(".")[0] for name in sys.modules})
sys.stderr.write("\\nPROBE" + json.dumps([code or 0, tops]))
"""
_FAST = {*HEAVY, "rich"}
_NO_TORCH = HEAVY - {"numpy"}


@pytest.mark.parametrize(
    ("arguments", "banned"),
    [
        (["--help"], {*_FAST, "jinja2"}),
        (["validate", "SPEC"], {*_FAST, "jinja2"}),
        (["plan", "SPEC", "--json"], HEAVY),
        (["plan", "SPEC", "--plot", "PLOT"], {*HEAVY, "PIL", "matplotlib"}),
        (["report", "--help"], _FAST),
        (["tune", "--help"], _FAST),
        (["launch", "SPEC", "--dry-run"], _FAST),
        (["launch", "--help"], _FAST),
        (["runs", "--runs-dir", "EMPTY"], _FAST),
        (["status", "--help"], _FAST),
        (["resume", "--help"], _FAST),
        (["plugins", "list"], HEAVY),
        (["schema"], HEAVY),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_fast_commands_import_nothing_heavy(tmp_path: Path, arguments: list[str], banned: set[str]) -> None:
    spec = write_spec(tmp_path / "spec")
    places = {"SPEC": str(spec), "EMPTY": str(tmp_path / "none"), "PLOT": str(tmp_path / "plan.svg")}
    command = [sys.executable, "-c", _PROBE, *(places.get(word, word) for word in arguments)]

    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)

    code, loaded = json.loads(done.stderr.rpartition("PROBE")[2])
    assert code == 0, done.stderr
    assert banned & set(loaded) == set()
