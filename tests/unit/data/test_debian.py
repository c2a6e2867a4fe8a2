from __future__ import annotations

import gzip
import json
import stat
from pathlib import Path

import pytest

from llama_scale.data import apt, debian
from llama_scale.errors import DataError

TRANSLATION = """Package: shotwell
Description-md5: 1
Description-en: digital photo organizer
 Shotwell is a digital photo organizer
 designed for GNOME.
 .
 It can:
  * import photos
    from a camera
  * show them
 .
 More   text.

Package: twin
Description-md5: 2
Description-en: digital photo organizer
 Shotwell is a digital photo organizer
 designed for GNOME.
 .
 It can:
  * import photos
    from a camera
  * show them
 .
 More   text.

Package: short
Description-md5: 3
Description-en: caf\u00e9

Nonsense: x
"""

APT = """#!/bin/sh
# An apt-get that puts one Translation file into the lists folder that its configuration names.
for last; do :; done
lists=$(sed -n 's/^Dir::State::lists "\\(.*\\)";$/\\1/p' "$3")
{body}
"""


def install_apt(folder: Path, monkeypatch: pytest.MonkeyPatch, *, body: str) -> None:
    """Put an apt-get and an apt-helper of our own in front: tests have no network."""
    (folder / "translation").write_text(TRANSLATION, encoding="utf-8")
    for name, text in (("apt-get", APT.replace("{body}", body)), ("apt-helper", '#!/bin/sh\ncat "$2"\n')):
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(apt, "_HELPER", folder / "apt-helper")


def test_descriptions_become_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_apt(tmp_path, monkeypatch, body=f'cp {tmp_path}/translation "$lists/archive_main_i18n_Translation-en"')

    count = debian.write_debian_corpus(tmp_path / "new" / "a.jsonl.gz")
    debian.write_debian_corpus(tmp_path / "one.jsonl", limit=1)

    rows = [json.loads(line) for line in gzip.decompress((tmp_path / "new" / "a.jsonl.gz").read_bytes()).splitlines()]
    assert count == len(rows) == 2  # a text that two packages share comes once
    assert rows[0]["id"] == "shotwell"
    assert rows[0]["text"].splitlines() == [
        "digital photo organizer",
        "Shotwell is a digital photo organizer designed for GNOME.",
        "It can:",
        "* import photos",
        "from a camera",
        "* show them",
        "More text.",
    ]
    assert rows[1] == {"id": "short", "text": "caf\u00e9"}
    assert len((tmp_path / "one.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "echo 'W: Failed to fetch http://deb' >&2",
            r"apt could not fetch .*; is there a network\? It said: W: Failed",
        ),
        ("echo 'E: no sources' >&2; exit 100", r"apt-get failed with status 100: E: no sources"),
        (': >"$lists/archive_Translation-en"', r"apt's translation file holds no descriptions; check the sources"),
    ],
)
def test_apt_without_result_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    install_apt(tmp_path, monkeypatch, body=body)

    with pytest.raises(DataError, match=message):
        debian.write_debian_corpus(tmp_path / "a.jsonl")

    assert not (tmp_path / "a.jsonl").exists()


def test_machine_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(DataError, match="this recipe needs apt-get, which only Debian and its relatives have"):
        debian.write_debian_corpus(tmp_path / "a.jsonl")


def test_slow_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_apt(tmp_path, monkeypatch, body="exec sleep 30")
    monkeypatch.setattr(apt, "_TIMEOUT_S", 0.2)

    with pytest.raises(DataError, match=r"apt-get took longer than 0.2 s; is the network slow\?"):
        debian.write_debian_corpus(tmp_path / "a.jsonl")


def test_output_is_checked_first(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("precious")

    with pytest.raises(DataError, match=r"a.jsonl exists; choose another --output, or replace it with --force"):
        debian.write_debian_corpus(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a.txt must end in .jsonl or .jsonl.gz"):
        debian.write_debian_corpus(tmp_path / "a.txt")
