"""What a user names (a run, a checkpoint, a Hugging Face folder) as a folder that transformers loads."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_scale.checkpoint.manifest import MANIFEST, Manifest, checkpoint_name, load_manifest, newest_complete
from llama_scale.convert.folders import REPORT, read_json, run_of
from llama_scale.convert.hf_config import CONFIG
from llama_scale.convert.origin import lost_with
from llama_scale.errors import LaunchError
from llama_scale.runs.find import find_run, is_run_folder
from llama_scale.spec.load import load_run_spec, load_spec
from llama_scale.spec.run import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model to look at.

    Args:
        folder: Hugging Face folder.
        spec: What it was trained with; None if nobody knows.
        checkpoint: Where it came from; None for a Hugging Face folder.
        manifest: The checkpoint's.
        run: The run folder, if it is a run's.
    """

    folder: Path
    spec: RunSpec | None
    checkpoint: Path | None = None
    manifest: Manifest | None = None
    run: Path | None = None


@contextmanager
def open_source(
    name: str,
    *,
    runs_dir: Path,
    step: int | None = None,
    spec: Path | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Iterator[Source]:
    """Give a model as a Hugging Face folder while the body runs.

    A run's checkpoint is assembled once, into ``assembled/`` of the run folder; that of a lone checkpoint is temporary.

    Args:
        name: Path of a Hugging Face folder or checkpoint, or a run as `status` takes it.
        runs_dir: Folder of runs.
        step: Which checkpoint of a run; default: the newest.
        spec: Spec to use instead of the run's (needed for the tasks of a Hugging Face folder).
        progress: Told what takes long.

    Raises:
        LaunchError: There is no such model, or the run has no complete checkpoint.
        ConvertError: It cannot be assembled.
        SpecError: The spec is not valid.
    """
    given = None if spec is None else (load_run_spec if is_run_folder(spec.parent) else load_spec)(spec)
    path = Path(name)
    if (path / CONFIG).is_file() or (path / MANIFEST).is_file():
        if step is not None:
            raise LaunchError(f"--step chooses a checkpoint of a run, and {name} is not a run; leave it out")
        if (path / CONFIG).is_file():
            yield Source(folder=path, spec=given)
            return
        with tempfile.TemporaryDirectory(prefix="llama-scale-") as temporary:
            run = run_of(path)
            known = given or (load_run_spec(run / "spec.yaml") if run else None)
            yield _assemble(path, Path(temporary) / "hf", spec=known, run=None, progress=progress)
        return
    if path.is_dir() and not is_run_folder(path):
        raise LaunchError(
            f"{name} is neither a run, nor a checkpoint ({MANIFEST}), nor a Hugging Face folder ({CONFIG})"
        )
    run = find_run(name, root=runs_dir).path
    checkpoint = _checkpoint(run, step)
    folder = run / "assembled" / checkpoint.name
    known = given or load_run_spec(run / "spec.yaml")
    yield _assemble(checkpoint, folder, spec=known, run=run, progress=progress)


def _checkpoint(run: Path, step: int | None) -> Path:
    root = run / "checkpoints"
    newest = newest_complete(root)
    if newest is None:
        raise LaunchError(f"{run} has no complete checkpoint yet; wait for one, or `llama-scale resume {run.name}`")
    if step is None:
        return newest
    wanted = root / checkpoint_name(step)
    if not (wanted / MANIFEST).is_file():
        there = sorted(path.parent.name for path in root.glob(f"step-*/{MANIFEST}"))
        raise LaunchError(f"--step {step}: {wanted.name} is not there or not complete; there are {', '.join(there)}")
    return wanted


def _assemble(
    checkpoint: Path, folder: Path, *, spec: RunSpec | None, run: Path | None, progress: Callable[[str], None]
) -> Source:
    """Return a checkpoint as a Hugging Face folder, made unless it is there."""
    manifest = load_manifest(checkpoint)
    if not _is_current(folder, manifest):
        progress(f"assembling {checkpoint}" + ("" if run is None else f" into {folder}"))
        report = _assemble_anew(checkpoint, folder)
        if report["origin_missing"] is not None:
            progress(f"note: {lost_with(report['origin_missing'])}")
    return Source(folder=folder, spec=spec, checkpoint=checkpoint, manifest=manifest, run=run)


def _is_current(folder: Path, manifest: Manifest) -> bool:
    """Tell whether a folder was assembled of this checkpoint, by a version that knows what came with a model."""
    report = read_json(folder / REPORT) if (folder / CONFIG).is_file() else None
    return report is not None and "stop_ids" in report and report.get("parameter_digest") == manifest.parameter_digest


def _assemble_anew(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Assemble a checkpoint in place of an outdated folder, which stays until the new one is whole."""
    from llama_scale.convert.assemble import assemble  # lazy: a Hugging Face folder needs no conversion

    if not folder.exists():
        return assemble(checkpoint, folder)
    fresh = folder.with_name(f".{folder.name}.new-{secrets.token_hex(4)}")
    report = assemble(checkpoint, fresh)
    shutil.rmtree(folder)
    fresh.rename(folder)
    return report


def fingerprint(source: Source) -> str:
    """Return what tells the weights of two opened models apart: a checkpoint's digests, or sizes and heads of files."""
    if source.manifest is not None:
        base = source.manifest.base
        return f"{source.manifest.parameter_digest} {'' if base is None else base.model_dump_json(exclude={'path'})}"
    digest = hashlib.sha256()
    for path in sorted(source.folder.rglob("*.safetensors")):
        digest.update(f"{path.relative_to(source.folder)}:{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_HEAD_BYTES))
    return digest.hexdigest()


_HEAD_BYTES = 1 << 20
"""Bytes of each file that go into a fingerprint: its header with the tensors' places, and the first of them."""
