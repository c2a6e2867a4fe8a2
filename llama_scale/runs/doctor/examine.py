"""The quick part of the examination: ask all hosts, compare their answers, leave nothing behind."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_scale.checkpoint.bases import bases_in
from llama_scale.errors import LaunchError
from llama_scale.runs.doctor.ask import ask_here, ask_hosts
from llama_scale.runs.doctor.checks import check_answers
from llama_scale.runs.doctor.records import Answer, Finding, Needs, Question

HERE = "this machine"


class DoctorError(LaunchError):
    """Report hosts that cannot run what they are meant to."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        failed = [str(finding) for finding in findings if finding.level == "failed"]
        count = f"{len(failed)} check{'s' if len(failed) != 1 else ''} failed"
        super().__init__("\n  ".join([f"{count}; `--no-doctor` launches all the same:", *failed]))


def examine(needs: Needs, *, runs_dir: Path, timeout_s: float) -> tuple[list[Finding], dict[str, Answer]]:
    """Return the findings about all hosts, and what they answered.

    Args:
        needs: What the run needs.
        runs_dir: Folder of run folders; made if it is missing, since hosts must see it.
        timeout_s: Time in which each host has to answer.

    Raises:
        LaunchError: The folder cannot be written here.
    """
    runs_dir = runs_dir.absolute()
    if not needs.hosts:
        question = Question(runs_dir=str(runs_dir), files=needs.files, port=needs.port, device=needs.device)
        own = ask_here(question)
        disk = (own.facts or {}).get("disk")
        if isinstance(disk, str):
            raise LaunchError(f"cannot create a run folder in {runs_dir}: {disk}; choose another with --runs-dir")
        return check_answers(needs, {HERE: own}, own=own), {HERE: own}
    token = secrets.token_hex(8)
    places = [runs_dir, *([bases_in(runs_dir)] if needs.bases else [])]
    marks = [str(place / f".doctor-{token}") for place in places]
    try:
        for place, mark in zip(places, marks, strict=True):
            place.mkdir(parents=True, exist_ok=True)
            Path(mark).write_text(token, encoding="ascii")
    except OSError as error:
        raise LaunchError(f"cannot write into {runs_dir}: {error.strerror}; choose another with --runs-dir") from error
    try:
        files = (*needs.files, *marks[1:])
        own = ask_here(Question(runs_dir=str(runs_dir), files=files, device="cpu"))
        questions = {
            host: Question(
                runs_dir=str(runs_dir),
                token=token,
                files=files,
                toward=needs.hosts[0 if number else min(1, len(needs.hosts) - 1)],
                first=needs.hosts[0],
                port=needs.port if number == 0 else 0,
                device=needs.device,
            )
            for number, host in enumerate(needs.hosts)
        }
        answers = ask_hosts(questions, ssh_port=needs.ssh_port, timeout_s=timeout_s)
        answers = {host: _look_at_shared(answer, token, own=own, bases=marks[1:]) for host, answer in answers.items()}
    finally:
        for place in places:
            for file in place.glob(f".doctor-{token}*"):
                file.unlink(missing_ok=True)
    return check_answers(needs, answers, own=own), answers


def _look_at_shared(answer: Answer, token: str, *, own: Answer, bases: Sequence[str]) -> Answer:
    """Add whether the host read what was written here, and whether what it wrote is seen here."""
    if answer.facts is None or own.facts is None:
        return answer
    shared: Mapping[str, Any] = answer.facts["shared"]
    try:
        seen = Path(shared["written"] or "").read_text(encoding="ascii") == token
    except OSError:
        seen = False
    told = {**shared, "same": shared["read"] == token, "seen_here": seen}
    told["bases"] = all(answer.facts["files"].get(mark) == own.facts["files"][mark] for mark in bases)
    return replace(answer, facts={**answer.facts, "shared": told})


def failures(findings: Sequence[Finding]) -> list[Finding]:
    """Return those that keep a run from working."""
    return [finding for finding in findings if finding.level == "failed"]
