"""Examples of tasks from LibreOffice's help pages (MPL-2.0), which Debian packages in many languages.

Every paragraph keeps its identifier in all languages, so that translations are aligned exactly. The splits go by page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path

from llama_scale.data.apt import Apt, private_apt
from llama_scale.data.debian_examples import split_of
from llama_scale.data.jsonl import check_jsonl_output, write_jsonl
from llama_scale.errors import DataError

_PACKAGE = "libreoffice-help-{}"
_IDENTIFIER = re.compile(r"(par|hd)_id")
_BLOCKS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6"})


@dataclass(slots=True)
class Page:
    """One help page.

    Args:
        title: Its first heading.
        paragraphs: Identifier -> text, headings included, in the order of the page.
        headings: Identifiers of headings.
    """

    title: str = ""
    paragraphs: dict[str, str] = field(default_factory=dict)
    headings: set[str] = field(default_factory=set)

    @property
    def body(self) -> str:
        """The page's text without headings, one paragraph a line."""
        return "\n".join(text for name, text in self.paragraphs.items() if name not in self.headings)


class _Reader(HTMLParser):
    """Read the paragraphs that have an identifier; what only macOS shows is left out."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self._open: tuple[str, str] | None = None  # tag, identifier
        self._texts: list[str] = []
        self._spans: list[bool] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        identifier = found.get("id") or ""
        if tag in _BLOCKS and _IDENTIFIER.match(identifier):
            self._open, self._texts, self._spans = (tag, identifier), [], []
        elif self._open and tag == "span":
            self._spans.append(found.get("class") == "MAC")

    def handle_endtag(self, tag: str) -> None:
        if tag == "span" and self._spans:
            self._spans.pop()
        if self._open is None or tag != self._open[0]:
            return
        text = " ".join("".join(self._texts).split())
        _, identifier = self._open
        self._open = None
        if text and identifier not in self.page.paragraphs:
            self.page.paragraphs[identifier] = text
            if tag != "p":
                self.page.headings.add(identifier)
                self.page.title = self.page.title or text

    def handle_data(self, data: str) -> None:
        if self._open and not any(self._spans):
            self._texts.append(data)


def read_page(html: str) -> Page:
    """Return the page that a help file holds."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.page


def write_translations(output: Path, *, language: str, limit: int | None = None, force: bool = False) -> int:
    """Write ``{id, split, source, target}``: paragraphs in English and another language. Returns the number of rows.

    Args:
        output: A .jsonl or .jsonl.gz file.
        language: As Debian's packages name it, e.g. ``de``, ``pt-br``.
        limit: Rows at most.
        force: Replace an existing file.

    Raises:
        DataError: No apt, no network, no such language, or the output exists or cannot be written.
    """
    check_jsonl_output(output, force=force)
    with private_apt() as apt:
        english, other = _pages(apt, "en-us"), _pages(apt, language)
    return write_jsonl(output, islice(_pairs(english, other), limit))


def write_pages(output: Path, *, limit: int | None = None, force: bool = False) -> int:
    """Write ``{id, split, title, text}``: a page's title and its text, in English. Returns the number of rows.

    Titles are summaries of their pages and queries that these answer. Arguments and errors as for
    :func:`write_translations`.
    """
    check_jsonl_output(output, force=force)
    with private_apt() as apt:
        english = _pages(apt, "en-us")
    return write_jsonl(output, islice(_titles(english), limit))


def _pages(apt: Apt, language: str) -> Mapping[str, Page]:
    folder = apt.unpack(_PACKAGE.format(language)) / "usr" / "share" / "libreoffice" / "help"
    roots = [path for path in sorted(folder.glob("*")) if (path / "text").is_dir()]
    if not roots:
        raise DataError(f"the package {_PACKAGE.format(language)} holds no help pages")
    files = sorted((roots[0] / "text").rglob("*.html"))
    return {str(file.relative_to(roots[0])): read_page(file.read_text(encoding="utf-8")) for file in files}


def _pairs(english: Mapping[str, Page], other: Mapping[str, Page]) -> Iterator[dict[str, str]]:
    seen: set[str] = set()
    for path, page in english.items():
        translated = other.get(path, Page()).paragraphs
        for identifier, source in page.paragraphs.items():
            target = translated.get(identifier, "")
            fits = 3 <= len(source) <= 1200 and 0.1 <= len(target) / len(source) <= 4
            if fits and target != source and source not in seen:
                seen.add(source)
                yield {"id": f"{path}#{identifier}", "split": split_of(path), "source": source, "target": target}


def _titles(english: Mapping[str, Page]) -> Iterator[dict[str, str]]:
    seen: set[str] = set()
    for path, page in english.items():
        text = page.body[:2000]
        if page.title and len(text) >= 80 and page.title not in seen:
            seen.add(page.title)
            yield {"id": path, "split": split_of(path), "title": page.title, "text": text}
