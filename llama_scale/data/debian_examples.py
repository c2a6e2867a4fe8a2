"""Examples of tasks from Debian's package descriptions: summaries, translations, search.

Each description is under its package's licence: use what is made here, but do not pass it on as one work. The splits go
by source package, the same for every task, so that no package is in training for one task and in a test for another.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_scale.data.apt import Apt, Description, private_apt
from llama_scale.data.debian import paragraphs
from llama_scale.data.jsonl import check_jsonl_output, write_jsonl
from llama_scale.errors import DataError

_HELD_BACK = 0.05
"""Share of the validation split, and of the test split."""

_NO_WORKS = re.compile(
    r"^(librust|golang|libghc|r-cran|r-bioc|node|fonts|task|education)-"
    r"|^linux-(image|headers)|-(dev|dbg|dbgsym|doc|docs|data|common|bin|l10n|i18n|examples|tests?)$|-(l10n|i18n|doc|dev)-"
)
"""Packages whose descriptions are their neighbours'."""
_NO_SECTIONS = frozenset({"libdevel", "debug", "oldlibs", "metapackages", "kernel", "localization"})
_TAIL = re.compile(r"\bthis package (contains|provides|includes|installs|ships)\b", re.IGNORECASE)
_EMPTY = re.compile(r"transitional|dummy package|meta-?package", re.IGNORECASE)
_MOST_OF_A_SOURCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """A description, unfolded."""

    package: str
    source: str
    section: str
    md5: str
    synopsis: str
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The description without its tail of boilerplate."""
        kept = list(self.paragraphs)
        if len(kept) > 1 and len(kept[-1]) < 320 and _TAIL.search(kept[-1]):
            kept.pop()
        return "\n".join(kept)

    @property
    def split(self) -> str:
        return split_of(self.source)


def split_of(key: str, *, share: float = _HELD_BACK) -> str:
    """Return train, valid or test by a hash of the key; valid and test get ``share`` each."""
    point = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32
    return "test" if point < share else "valid" if point < 2 * share else "train"


def write_summaries(output: Path, *, force: bool = False) -> int:
    """Write ``{id, split, document, summary}``: long description and synopsis. Returns the number of rows.

    Raises:
        DataError: No apt, no network, or the output exists or cannot be written.
    """
    check_jsonl_output(output, force=force)
    with private_apt() as apt:
        texts = _texts(apt)
    return write_jsonl(output, _summaries(texts))


def write_translations(output: Path, *, language: str, force: bool = False) -> int:
    """Write ``{id, split, kind, source, target}``: English texts and Debian's own translations. Returns the rows.

    Args:
        output: A .jsonl or .jsonl.gz file.
        language: As the archive names it, e.g. ``de`` or ``pt_BR``.
        force: Replace an existing file.

    Raises:
        DataError: No apt, no network, no such language, or the output exists or cannot be written.
    """
    check_jsonl_output(output, force=force)
    with private_apt(("en", language)) as apt:
        english = {text.md5: text for text in reversed(_texts(apt))}
        translated = apt.descriptions(language)
    if not translated:
        raise DataError(
            f"the archive has no descriptions in the language {language!r}; try da, de, es, fr, it, ja, pl, pt_BR, ru "
            "or sk"
        )
    return write_jsonl(output, _translations(english, translated))


def write_search(folder: Path, *, force: bool = False) -> tuple[int, int]:
    """Write corpus.jsonl.gz ``{doc_id, text}`` and queries.jsonl.gz ``{query_id, split, query, doc_id}`` into a folder.

    The synopsis is the query, the long description the document. Returns the numbers of documents and queries.

    Raises:
        DataError: No apt, no network, or an output exists or cannot be written.
    """
    corpus, queries = folder / "corpus.jsonl.gz", folder / "queries.jsonl.gz"
    for output in (corpus, queries):
        check_jsonl_output(output, force=force)
    with private_apt() as apt:
        found = [text for text in _texts(apt) if len(text.text) >= 120 and not text.package.startswith("librust-")]
    # A package can have several versions with a description each; the first counts.
    texts = list({text.package: text for text in reversed(found)}.values())[::-1]
    documents = write_jsonl(corpus, ({"doc_id": text.package, "text": text.text[:1200]} for text in texts))
    shared = Counter(_key(text.synopsis) for text in texts)
    return documents, write_jsonl(
        queries,
        (
            {"query_id": f"en:{t.package}", "split": t.split, "query": t.synopsis, "doc_id": t.package}
            for t in texts
            if shared[_key(t.synopsis)] == 1 and 15 <= len(t.synopsis) <= 120
        ),
    )


def _texts(apt: Apt) -> list[_Text]:
    """Return each distinct English description."""
    packages = apt.packages()
    found: dict[str, _Text] = {}
    for description in apt.descriptions("en"):
        source, section = packages.get(description.package, (description.package, ""))
        text = _Text(
            package=description.package,
            source=source,
            section=section,
            md5=description.md5,
            synopsis=description.synopsis,
            paragraphs=tuple(paragraphs(description.lines)),
        )
        found.setdefault(_key(text.text), text)
    return list(found.values())


def _key(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


def _summaries(texts: Sequence[_Text]) -> Iterator[dict[str, str]]:
    used: set[str] = set()
    of_source: Counter[str] = Counter()
    for text in texts:
        plain = not (_NO_WORKS.search(text.package) or text.section in _NO_SECTIONS or _EMPTY.search(text.synopsis))
        fits = 200 <= len(text.text) <= 4000 and 15 <= len(text.synopsis) <= 120
        if plain and fits and of_source[text.source] < _MOST_OF_A_SOURCE and _key(text.synopsis) not in used:
            of_source[text.source] += 1
            used.add(_key(text.synopsis))
            yield {"id": text.package, "split": text.split, "document": text.text, "summary": text.synopsis}


def _translations(english: dict[str, _Text], translated: Sequence[Description]) -> Iterator[dict[str, str]]:
    seen: set[str] = set()
    for description in translated:
        original = english.get(description.md5)
        if original is None or original.package.startswith("librust-"):
            continue
        pairs = [("synopsis", original.synopsis, description.synopsis)]
        parts = paragraphs(description.lines)
        if len(parts) == len(original.paragraphs):
            pairs += [("paragraph", a, b) for a, b in zip(original.paragraphs, parts, strict=True)]
        for kind, source, target in pairs:
            if _is_pair(source, target) and _key(source) not in seen:
                seen.add(_key(source))
                yield {
                    "id": original.package,
                    "split": original.split,
                    "kind": kind,
                    "source": source,
                    "target": target,
                }


def _is_pair(source: str, target: str) -> bool:
    if not source or not target or source == target or len(source) > 1200 or "<trans>" in target:
        return False
    # Chinese, Japanese and Korean say the same in fewer characters.
    return 1 / 3 <= len(target) / len(source) <= 3 or any(ord(c) > 0x2E80 for c in target)
