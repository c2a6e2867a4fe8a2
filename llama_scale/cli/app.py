"""The ``llama-scale`` command: the table of commands, and the one place where errors become exit codes.

No traceback is shown without ``--debug``. The command line itself is Typer's (``cli/root.py``); only a plain
``validate`` goes straight to its code, since editors and commit hooks run it all the time and Typer alone takes longer
than checking a spec does.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from llama_scale.cli.output import say
from llama_scale.errors import LlamaScaleError

DEBUG_VARIABLE = "LLAMA_SCALE_DEBUG"

COMMANDS: dict[str, str] = {
    "init": "Write a commented spec for a model, a cluster profile and a launcher.",
    "validate": "Check specs without torch: every error at once, with file:line.",
    "schema": "Print the JSON Schema of the spec.",
    "plan": "Show who computes what, memory by part and stage, and the pipeline's bubble.",
    "doctor": "Examine this machine, or every host of a spec, and name what would keep a run from working.",
    "tune": "Launch the best predicted layouts for a few steps and pick the fastest.",
    "launch": "Render a run's bundle and run it; --dry-run stops at the bundle.",
    "runs": "List the runs of a folder.",
    "status": "Show how a run is doing.",
    "logs": "Print or follow a run's logs.",
    "stop": "Stop a run after it has saved a checkpoint.",
    "resume": "Go on from the newest complete checkpoint, also on another layout.",
    "report": "Write one HTML page about runs: loss, speed, memory, against what was planned.",
    "data": "Build token files from text.",
    "tokenizer": "Train a SentencePiece tokenizer.",
    "convert": "Convert between Hugging Face folders and sharded checkpoints, and prove it.",
    "eval": "Score a model on its tasks: metrics with confidence intervals, models side by side.",
    "search": "Index a corpus with a trained embedding model, and find documents.",
    "plugins": "List installed adapters, tasks, gates and launchers; check one; start a new one.",
    "generate": "Complete prompts with a run, a checkpoint or an exported model.",
}
"""Command name -> one line of help. The code is in ``llama_scale.cli.<name>``, a Typer called ``app``."""


def __getattr__(name: str) -> Any:
    """Give ``app``, the Typer group, without importing Typer before somebody asks for it."""
    if name == "app":
        from llama_scale.cli.root import app  # lazy: see the module's docstring

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Run the command line and exit with the documented status."""
    # pydantic would read every distribution's entry points for plugins of its own, and fail where one is damaged.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    _take_debug(sys.argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be text in the locale's encoding
    try:
        _run(sys.argv[1:])
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; Python would complain once more while flushing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except LlamaScaleError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        text = " ".join(str(error).split())
        say(f"error: {type(error).__name__}: {text} (not expected; run with --debug to see where)")
        sys.exit(1)


def _run(words: list[str]) -> None:
    if words[:1] == ["validate"]:
        from llama_scale.cli.checking import run_plain  # lazy: one command's code

        status = run_plain(words[1:])
        if status is not None:
            sys.exit(status)
    from llama_scale.cli.root import app  # lazy: see the module's docstring

    app()


def _take_debug(argv: list[str]) -> None:
    """Let ``--debug`` stand anywhere on the command line, not only before the command."""
    end = argv.index("--") if "--" in argv else len(argv)
    if "--debug" in argv[1:end]:
        os.environ[DEBUG_VARIABLE] = "1"
        argv[1:end] = [word for word in argv[1:end] if word != "--debug"]
