"""A real corpus that any Debian machine can make: the descriptions of all its packages, through apt.

Lists and cache of apt go to a temporary folder, so that the system's own are not touched and root is not needed.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llama_scale.data.output import explain_os_errors, scratch_path
from llama_scale.errors import DataError

_HELPER = Path("/usr/lib/apt/apt-helper")
_DEBIAN_SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
_TIMEOUT_S = 300
_FIELD = re.compile(r"^Description-[A-Za-z_@]+: (.*)((?:\n .*)*)", re.MULTILINE)
_PACKAGE = re.compile(r"^Package: (\S+)", re.MULTILINE)


def write_debian_corpus(output: Path, *, limit: int | None = None, force: bool = False) -> int:
    """Write ``{"id": package, "text": synopsis and description}`` lines, each text once, in the order of the archive.

    Args:
        output: A .jsonl or .jsonl.gz file; equal archives give equal bytes.
        limit: Documents to write at most.
        force: Replace an existing file.

    Returns:
        Number of documents.

    Raises:
        DataError: No apt, no network, or the output exists or cannot be written.
    """
    if not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"--output {output} must end in .jsonl or .jsonl.gz")
    if output.exists() and not force:
        raise DataError(f"{output} exists; choose another --output, or replace it with --force")
    with tempfile.TemporaryDirectory(prefix="llama-scale-apt-") as folder:
        translation = _fetch_translation(Path(folder))
        rows = list(_take(_documents(translation), limit))
    if not rows:
        raise DataError("apt's translation file holds no descriptions; check the sources in /etc/apt")
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if output.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    _write(output, content)
    return len(rows)


def _write(output: Path, content: bytes) -> None:
    scratch = scratch_path(output)
    with explain_os_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.write_bytes(content)
            scratch.replace(output)
        finally:
            scratch.unlink(missing_ok=True)


def _take(rows: Iterator[dict[str, str]], limit: int | None) -> Iterator[dict[str, str]]:
    for number, row in enumerate(rows):
        if number == limit:
            return
        yield row


def _fetch_translation(folder: Path) -> str:
    """Return the archive's Translation-en, fetched into ``folder``."""
    if shutil.which("apt-get") is None or not _HELPER.exists():
        raise DataError("this recipe needs apt-get, which only Debian and its relatives have; give text by --input")
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    config = folder / "apt.conf"
    config.write_text("\n".join(_configuration(folder)) + "\n")
    said = _run("apt-get", "-q", "-c", str(config), "update")
    files = sorted((folder / "lists").glob("*_Translation-en*"))
    if not files:
        # apt-get update succeeds without a network: it warns and keeps old lists, and here there are none.
        raise DataError(f"apt could not fetch package descriptions; is there a network? It said: {said[-500:]}")
    return "".join(_run(str(_HELPER), "cat-file", str(path)) for path in files)


def _configuration(folder: Path) -> list[str]:
    lines = [
        "#clear Acquire::Languages;",  # an image may have set it to "none", and later entries would be ignored
        'Acquire::Languages { "en"; };',
        f'Dir::State::lists "{folder}/lists";',
        f'Dir::Cache "{folder}/cache";',
        'Debug::NoLocking "true";',
        'APT::Sandbox::User "";',  # the temporary folder belongs to the caller alone
        'Acquire::Retries "2";',
        'Acquire::http::Timeout "20";',
    ]
    if _DEBIAN_SOURCES.exists():  # leave third parties' archives out
        lines += [f'Dir::Etc::sourcelist "{_DEBIAN_SOURCES}";', 'Dir::Etc::sourceparts "/dev/null";']
    return lines


def _run(*command: str) -> str:
    """Run a command and return its stdout (its stderr appended if it failed to say anything)."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, env=environment, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{' '.join(command[:1])} took longer than {_TIMEOUT_S} s; is the network slow?") from error
    except OSError as error:
        raise DataError(f"cannot start {command[0]}: {error.strerror}") from error
    output, talk = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    if done.returncode != 0:
        raise DataError(f"{command[0]} failed with status {done.returncode}: {' '.join(talk.split())[-500:]}")
    return output or talk


def _documents(translation: str) -> Iterator[dict[str, str]]:
    seen: set[str] = set()
    for block in translation.split("\n\n"):
        description, package = _FIELD.search(block), _PACKAGE.search(block)
        if not (description and package):
            continue
        text = "\n".join([description[1].strip(), *_paragraphs(description[2].split("\n")[1:])])
        if text not in seen:
            seen.add(text)
            yield {"id": package[1], "text": text}


def _paragraphs(lines: list[str]) -> list[str]:
    """Undo Debian's folding: ' text' goes on, ' .' parts paragraphs, '  text' and list items stay lines.

    Source: Debian Policy, 5.6.13 Description.
    """
    found: list[str] = []
    joins = False
    for line in lines:
        body = line[1:]
        text = " ".join(body.split())
        if text in (".", ""):
            joins = False
        elif joins and not body.startswith((" ", "* ", "- ", "+ ")):
            found[-1] += " " + text
        else:
            found.append(text)
            joins = True
    return found
