"""A real corpus that any Debian machine can make: the descriptions of all its packages, through apt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from llama_scale.data.apt import Description, private_apt
from llama_scale.data.jsonl import check_jsonl_output, write_jsonl
from llama_scale.errors import DataError


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
    check_jsonl_output(output, force=force)
    with private_apt() as apt:
        rows = list(islice(_documents(apt.descriptions("en")), limit))
    if not rows:
        raise DataError("apt's translation file holds no descriptions; check the sources in /etc/apt")
    return write_jsonl(output, rows)


def _documents(descriptions: Sequence[Description]) -> Iterator[dict[str, str]]:
    seen: set[str] = set()
    for description in descriptions:
        text = "\n".join([description.synopsis, *paragraphs(description.lines)])
        if text not in seen:
            seen.add(text)
            yield {"id": description.package, "text": text}


def paragraphs(lines: Sequence[str]) -> list[str]:
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
