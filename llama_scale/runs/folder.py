"""Where each thing of a run lies: the one place that knows the names of files in a run folder."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llama_scale.errors import LaunchError
from llama_scale.runs.atomic import write_atomically

if TYPE_CHECKING:
    from llama_scale.checkpoint.manifest import StartRecord

RUN_VARIABLE = "LLAMA_SCALE_RUN"
"""Environment variable that marks every process of a run; its value is the run folder's path."""
ATTEMPT_VARIABLE = "LLAMA_SCALE_ATTEMPT"
"""Environment variable that holds the number of the attempt a worker belongs to."""

_ATTEMPT = re.compile(r"\d{3,}")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Name the files of one run."""

    path: Path

    @property
    def name(self) -> str:
        """Folder name, by which commands know the run."""
        return self.path.name

    @property
    def spec(self) -> Path:
        """Resolved spec of the run as it goes on now."""
        return self.path / "spec.yaml"

    @property
    def plan(self) -> Path:
        """Plan of the same spec."""
        return self.path / "plan.json"

    @property
    def bundle(self) -> Path:
        """The text that is executed; earlier ones are kept as ``bundle-000``, ``bundle-001``, ..."""
        return self.path / "bundle"

    @property
    def base(self) -> Path:
        """What the run's weights started from (``StartRecord``)."""
        return self.path / "base.json"

    def load_start(self) -> StartRecord | None:
        """Return what the run's weights started from; None if nobody has written it, as in runs of version 0.1."""
        from llama_scale.checkpoint.manifest import StartRecord  # lazy: most commands do not ask

        try:
            return StartRecord.model_validate_json(self.base.read_bytes())
        except (OSError, ValueError):
            return None

    def save_start(self, record: StartRecord) -> None:
        """Write down what the run's weights started from.

        Raises:
            LaunchError: The folder cannot be written.
        """
        try:
            write_atomically(self.base, record.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise LaunchError(
                f"cannot write {self.base}: {error.strerror}; check the folder's permissions and space"
            ) from error

    @property
    def status(self) -> Path:
        """State of the run (``records.Status``); only the supervisor writes it."""
        return self.path / "status.json"

    @property
    def submission(self) -> Path:
        """What was handed to a scheduler (``records.Submission``); there for launchers with a queue only."""
        return self.path / "submission.json"

    @property
    def done(self) -> Path:
        """Marker: all steps are done. Written last, by whoever watched the ranks to their end."""
        return self.path / "done"

    @property
    def lock(self) -> Path:
        """File that the supervisor holds an flock on for as long as it lives."""
        return self.path / "supervisor.lock"

    @property
    def agent_lock(self) -> Path:
        """File that ``launch.sh`` locks; the lock lasts while the agent or one of its ranks lives."""
        return self.path / "agent.lock"

    @property
    def stop(self) -> Path:
        """Request file: while it exists, the run saves a checkpoint and ends."""
        return self.path / "stop"

    @property
    def logs(self) -> Path:
        """Folder of all logs."""
        return self.path / "logs"

    @property
    def examples(self) -> Path:
        """Folder of what the tasks' examples were made into, by task and split."""
        return self.path / "examples"

    @property
    def supervisor_log(self) -> Path:
        """What the supervisor says."""
        return self.logs / "supervisor.log"

    @property
    def agent_log(self) -> Path:
        """What ``launch.sh`` and the agent say."""
        return self.logs / "agent.log"

    def rank_log(self, rank: int) -> Path:
        """Return the log of one rank, stdout and stderr, over all attempts."""
        return self.logs / f"rank-{rank:05d}.log"

    @property
    def metrics(self) -> Path:
        """One JSON line a step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints (``step-00000100``)."""
        return self.path / "checkpoints"

    @property
    def attempts(self) -> Path:
        """Folder that has one folder per start of the ranks."""
        return self.path / "attempts"

    def attempt(self, number: int) -> Path:
        """Return the folder of one attempt."""
        return self.attempts / f"{number:03d}"

    def error_file(self, attempt: int, rank: int) -> Path:
        """Return the file in which a rank reports the exception that ended it (``records.RankFailure``)."""
        return self.attempt(attempt) / f"error-rank-{rank:05d}.json"

    def memory_file(self, attempt: int, rank: int) -> Path:
        """Return the file in which a rank reports the memory that it came to need (``records.MemoryPeak``)."""
        return self.attempt(attempt) / f"memory-rank-{rank:05d}.json"

    def verdict(self, attempt: int) -> Path:
        """Return the file in which the agent tells how its ranks ended (``records.Verdict``)."""
        return self.attempt(attempt) / "verdict.json"

    def attempt_numbers(self) -> list[int]:
        """Return the attempts made so far, ascending."""
        if not self.attempts.is_dir():
            return []
        return sorted(int(p.name) for p in self.attempts.iterdir() if _ATTEMPT.fullmatch(p.name) and p.is_dir())

    def next_attempt(self) -> int:
        """Create the folder of the next attempt and return its number."""
        number = max(self.attempt_numbers(), default=-1) + 1
        self.attempt(number).mkdir(parents=True)
        return number

    @classmethod
    def create(
        cls,
        root: Path,
        *,
        name: str,
        files: Mapping[str, str],
        start: StartRecord | None = None,
        examples: Path | None = None,
    ) -> RunFolder:
        """Make ``root/<name>-<utc>-<4hex>`` with its bundle, all at once or not at all.

        Args:
            root: Folder of runs; created if missing.
            name: Name of the run.
            files: The bundle, file name -> text; ``spec.yaml`` and ``plan.json`` are copied beside it.
            start: What the run's weights start from; None leaves it to the job.
            examples: Folder of examples that are prepared already, if it exists: it becomes the run's.

        Raises:
            LaunchError: The folder cannot be written (read-only, full, not a folder).
        """
        try:
            root = root.absolute()
            root.mkdir(parents=True, exist_ok=True)
            run = cls(root / stamped(name))
            scratch = cls(root / f".{run.name}.tmp")
            scratch.path.mkdir()
        except OSError as error:
            raise _cannot_create(root, error) from error
        try:
            for folder in (scratch.logs, scratch.checkpoints, scratch.attempts):
                folder.mkdir()
            scratch.write_bundle(files)
            if start is not None:
                scratch.save_start(start)
            if examples is not None and examples.exists():
                shutil.move(examples, scratch.examples)
            scratch.path.rename(run.path)
        except OSError as error:
            shutil.rmtree(scratch.path, ignore_errors=True)
            raise _cannot_create(root, error) from error
        except LaunchError:
            shutil.rmtree(scratch.path, ignore_errors=True)
            raise
        return run

    def write_bundle(self, files: Mapping[str, str]) -> None:
        """Write a bundle into a folder that has none, and its spec and plan beside it."""
        write_files(self.bundle, files)
        for target in (self.spec, self.plan):
            write_atomically(target, files[target.name])

    def replace_bundle(self, files: Mapping[str, str]) -> Path:
        """Put a new bundle in place of the present one, which is kept; return where.

        Raises:
            LaunchError: The folder cannot be written; the present bundle is then still in place.
        """
        fresh = self.path / ".bundle.tmp"
        kept = self._kept_bundle()
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            write_files(fresh, files)
            if self.bundle.exists():
                self.bundle.rename(kept)
            fresh.rename(self.bundle)
            for target in (self.spec, self.plan):
                write_atomically(target, files[target.name])
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if not self.bundle.exists() and kept.exists():
                kept.rename(self.bundle)
            raise LaunchError(
                f"cannot write a new bundle into {self.path}: {error.strerror}; free space or mend permissions"
            ) from error
        return kept

    def _kept_bundle(self) -> Path:
        number = 0
        while (self.path / f"bundle-{number:03d}").exists():
            number += 1
        return self.path / f"bundle-{number:03d}"


def stamped(name: str) -> str:
    """Return a folder name that nobody has had: ``<name>-<utc>-<4hex>``."""
    utc = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return f"{name}-{utc}-{secrets.token_hex(2)}"


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write texts into a new folder; shell scripts become executable.

    Raises:
        OSError: The folder exists or cannot be written; nothing half-written is then left.
    """
    folder.mkdir(parents=True)
    try:
        for name, text in files.items():
            path = folder / name
            # Byte for byte: no newline translation, whatever the locale.
            path.write_bytes(text.encode("utf-8"))
            if name.endswith(".sh"):
                path.chmod(0o755)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)  # made above, nobody else's
        raise


def _cannot_create(root: Path, error: OSError) -> LaunchError:
    reason = error.strerror or str(error)
    return LaunchError(
        f"cannot create a run folder in {root}: {reason}; choose a folder that can be written with --runs-dir DIR "
        "or LLAMA_SCALE_RUNS"
    )
