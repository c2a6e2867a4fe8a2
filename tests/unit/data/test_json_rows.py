from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_scale.data import json_rows
from llama_scale.data.examples import read_examples
from llama_scale.errors import DataError

TEXTS = st.text(st.sampled_from('ab"\\\n\té𝄞{}[],: ') | st.characters(codec="utf-8"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=4), max_size=6)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, block=st.integers(1, 40), indent=st.sampled_from([None, 0, 3]), form=st.integers(0, 3))
def test_rows_are_those_that_json_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, rows: list[Any], block: int, indent: Any, form: int
) -> None:
    ascii_only, packed = form % 2 == 0, form // 2 == 0
    monkeypatch.setattr(json_rows, "_BLOCK_BYTES", block)
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    path = tmp_path / f"a.json{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())

    found = list(read_examples(path))

    assert [dict(example.values) for example in found] == rows
    lines = [int(example.where.rpartition(":")[2]) for example in found]
    if indent is None:
        assert set(lines) <= {1}
    else:  # each object begins on a line with nothing else, or is {}
        assert all(text.splitlines()[line - 1].strip().startswith("{") for line in lines) or "\x85" in text
        assert lines == sorted(set(lines))


def test_a_byte_order_mark_and_space_around_the_list_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf\r\n [ {"a": 1} ,\r\n {"a": 2} ] \n')

    assert [(e["a"], e.where[-1]) for e in read_examples(tmp_path / "a.json")] == [(1, "2"), (2, "3")]


def test_a_json_file_may_hold_an_object_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\n{"a": 1}\n{"a": 2}\n')

    assert [e.where for e in read_examples(tmp_path / "a.json")] == [f"{tmp_path}/a.json:2", f"{tmp_path}/a.json:3"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", r"a\.json:1: the file ends, and a \.json file must be one list of objects"),
        (b'\n"x"', r"a\.json:2: '\"' stands, and a \.json file must be one list"),
        (b'{\n "a": 1\n}', r"a\.json:1:\d: no JSON \(Expecting property name .*each line must be one JSON object"),
        (b'[{"a": 1}\n', r"a\.json:2: the file ends where a comma or the list's end must be"),
        (b'[{"a": 1} {"a": 2}]', r"a\.json:1: '\{' stands where a comma"),
        (b'[{"a": 1},\n]', r"a\.json:2: '\]' stands where an object must begin"),
        (b"[,]", r"a\.json:1: ',' stands where an object must begin"),
        (b"[\n[1]]", r"a\.json:2: '\[' stands where an object must begin; the list must hold nothing else"),
        (b'[{"a": 1}]\n[]', r"a\.json:2: '\[' stands behind the list's end"),
        (b'[\n{"a":\n 1, b}, {"a": 2}, {"a": 3}]', r"a\.json:2: the object that begins here is no JSON: .* \(line 3\)"),
        (b'[{"a": "', r"a\.json:1: the object that begins here is no JSON: Unterminated string"),
        (b'[{"a": 1}, {"b": tru', r"a\.json:1: the object that begins here is no JSON"),
        (b"[" + b'{"a": [' * 1 + b"[" * 100_000, r"a\.json:1: the object that begins here is nested too deep"),
        (b'[\n\n{"a": "\xff"}]', r"a\.json:3: byte 0xff is no UTF-8; convert the file"),
        ('[{"a": 1}]'.encode("utf-16"), r"a\.json:1: byte 0xff is no UTF-8; .* iconv -f utf-16 -t utf-8"),
        (b'[{"a": "\xc3', r"a\.json:1: byte 0xc3 is no UTF-8"),
        (b'[{"a": "\\ud800"}]', r"a\.json:1: .* is half of a surrogate pair"),
        (b'[\n{"a": 1, "a": 0}]', r"a\.json:2: the key 'a' stands twice in one object"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "a.json").write_bytes(content)

    with pytest.raises(DataError, match=fault):
        list(read_examples(tmp_path / "a.json"))


def test_damaged_gzip_and_objects_without_end_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'[{"a": 1}]' * 999)[:30])
    with pytest.raises(DataError, match=r"a\.json\.gz:\d+: the gzip data is cut off or damaged"):
        list(read_examples(tmp_path / "a.json.gz"))
    monkeypatch.setattr(json_rows, "MOST_CHARACTERS", 100)
    monkeypatch.setattr(json_rows, "_BLOCK_BYTES", 10)
    (tmp_path / "a.json").write_text(json.dumps([{"a": "x" * 1000}]))
    with pytest.raises(
        DataError, match=r"a\.json:1: the object that begins here has more than 100 characters; split it"
    ):
        list(read_examples(tmp_path / "a.json"))


def test_one_object_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" + ",".join(json.dumps({"a": "x" * 900}) for _ in range(200)) + "]")
    monkeypatch.setattr(json_rows, "_BLOCK_BYTES", 1000)
    with path.open("rb") as raw:
        rows = json_rows.json_rows(path, raw)
        next(rows)

        assert raw.tell() < 30_000  # of 182,000: what a buffered file reads ahead, not all


def test_equal_keys_of_a_line_are_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"m": [{"weight": 0, "weight": 1}]}\n')

    with pytest.raises(DataError, match=r"a\.jsonl:2: the key 'weight' stands twice in one object; keep one"):
        list(read_examples(tmp_path / "a.jsonl"))
