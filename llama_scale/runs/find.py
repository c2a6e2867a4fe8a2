"""Find runs by path or by the beginning of their names."""

from __future__ import annotations

from pathlib import Path

from llama_scale.errors import LaunchError
from llama_scale.runs.folder import RunFolder


def list_runs(root: Path) -> list[RunFolder]:
    """Return the run folders of a folder, oldest first; empty if there is no such folder.

    Raises:
        LaunchError: It is not a folder or cannot be read.
    """
    try:
        folders = [path for path in root.iterdir() if not path.name.startswith(".") and is_run_folder(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LaunchError(f"cannot list the runs in {root}: {error.strerror}") from error
    return [RunFolder(path.absolute()) for path in sorted(folders, key=_age)]


def _age(path: Path) -> tuple[float, str]:
    try:
        return (path / "plan.json").stat().st_mtime, path.name
    except OSError:
        return 0.0, path.name


def is_run_folder(path: Path) -> bool:
    """Tell whether a folder looks like a run's."""
    return (path / "spec.yaml").is_file() and (path / "plan.json").is_file()


def find_run(name: str, *, root: Path) -> RunFolder:
    """Return the run that a user means.

    Args:
        name: A path of a run folder, or the beginning of one name in ``root`` (or the whole).
        root: Folder of runs.

    Raises:
        LaunchError: No such run, several, or a folder that is no run.
    """
    direct = Path(name)
    if direct.is_dir() and (is_run_folder(direct) or "/" in name):
        return _checked(direct)
    runs = list_runs(root)
    matches = [run for run in runs if run.name == name] or [run for run in runs if run.name.startswith(name)]
    if len(matches) == 1 and name:
        return matches[0]
    if not matches or not name:
        known = ", ".join(run.name for run in runs[-5:])
        hint = f"the newest there: {known}" if known else "it holds no runs; choose another with --runs-dir"
        raise LaunchError(f"no run in {root} is called {name!r} or begins with it; {hint}")
    listing = ", ".join(run.name for run in matches[:8])
    raise LaunchError(f"{name!r} is the beginning of {len(matches)} runs in {root}: {listing}; write more of the name")


def _checked(path: Path) -> RunFolder:
    if not is_run_folder(path):
        raise LaunchError(
            f"{path} is no run folder: it has no spec.yaml and plan.json; `llama-scale runs` lists the runs"
        )
    return RunFolder(path.resolve())
