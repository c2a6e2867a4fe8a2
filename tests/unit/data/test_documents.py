from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from llama_scale.data.documents import find_source
from llama_scale.errors import DataError


def read(*patterns: Path | str, **options: str) -> list[str]:
    return list(find_source([str(pattern) for pattern in patterns], **options).documents())


def test_kinds_of_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("one\r\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"text": "three"}\n\n{"text": ""}\n')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress('\ufeff{"text": "vi\u00e8r"}'.encode()))
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"five"))

    found = read(tmp_path / "b.txt", tmp_path / "*.jsonl*", tmp_path / "d.txt.gz", tmp_path / "b.txt")

    assert found == ["one", "two", "three", "", "vi\u00e8r", "five"]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", ["a", "b", "", "", "c"]),
        ("paragraph", ["a\nb", "c"]),
        ("file", ["a\nb\n\n \nc"]),
    ],
)
def test_text_unit_says_what_a_document_is(tmp_path: Path, unit: str, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n\n \nc\n")

    found = read(tmp_path / "a.txt", unit=unit)

    assert [text.strip() if unit == "line" else text for text in found] == expected


def test_progress_ends_at_the_files_size(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 5000))
    (tmp_path / "b.txt").write_text("hello\n" * 100)
    source = find_source([str(tmp_path / "*")])
    seen: list[int] = []

    assert len(list(source.documents(on_read=seen.append))) == 5100

    assert seen == sorted(seen)
    assert seen[-1] == source.size_bytes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": }', r"a.jsonl:2:10: no JSON \(Expecting value\)"),
        ('["text"]', r"""a.jsonl:2: '\["text"\]' is no JSON object"""),
        (r'{"text": "\ud800"}', r"a.jsonl:2: '\\ud800' is half of a surrogate pair, and no text; remove it"),
        ('{"txt": "x"}', r"a.jsonl:2: no key 'text'; the keys are 'txt'; did you mean --field txt\?"),
        ('{"body": "x"}', r"a.jsonl:2: no key 'text'; the keys are 'body'; name the text's key with --field"),
        ('{"text": [1]}', r"a.jsonl:2: 'text' is \[1\], and the text must be a string"),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "good"}) + "\n" + line + "\n")

    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.jsonl")


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\ncaf\xe9\n")

    with pytest.raises(DataError, match=r"a.txt:2: byte 0xe9 at column 4 is no UTF-8; convert the file"):
        read(tmp_path / "a.txt")


def test_utf_16_is_named_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"text": "one"}\n'.encode("utf-16"))

    with pytest.raises(DataError, match=r"a.jsonl:1: byte 0xff at column 1 .* iconv -f utf-16 -t utf-8"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip"])
def test_damaged_gzip_is_named(tmp_path: Path, damage: str) -> None:
    content = bytearray(gzip.compress(b"".join(b"%d\n" % (i * 7919) for i in range(2000)), mtime=0))
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.txt.gz").write_bytes({"cut": content[:-100], "no gzip": b"plain text"}.get(damage, content))

    with pytest.raises(DataError, match=r"a.txt.gz:\d+: (the gzip data is cut off or damaged|byte)"):
        read(tmp_path / "a.txt.gz")


def test_all_inputs_that_do_not_exist_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a")
    (tmp_path / "folder").mkdir()

    with pytest.raises(DataError) as caught:
        find_source([str(tmp_path / "no*.txt"), str(tmp_path / "x.csv"), str(tmp_path / "folder")])

    first, second, third = str(caught.value).splitlines()
    assert "no*.txt matches no file" in first
    assert "x.csv: only .txt and .jsonl, plain or with .gz" in second
    assert "folder is a folder; name its files" in third
