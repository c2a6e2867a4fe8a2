from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llama_scale.data.examples import Column, Example, check_example, read_examples, split_by_field, split_by_share
from llama_scale.errors import DataError


def rows(path: Path) -> list[dict[str, Any]]:
    return [dict(example.values) for example in read_examples(path)]


def test_jsonl_and_gz_and_a_folder_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress('{"a": "vi\u00e8r"}'.encode()))
    (tmp_path / "notes.md").write_text("no examples")

    assert rows(tmp_path) == [{"a": "vi\u00e8r"}, {"a": 1}, {"a": 2}]
    assert [e.where for e in read_examples(tmp_path / "b.jsonl")] == [f"{tmp_path}/b.jsonl:1", f"{tmp_path}/b.jsonl:3"]


def test_parquet_gives_the_same_rows_as_jsonl(tmp_path: Path) -> None:
    content = [{"q": f"q{i}", "answers": ["a", "b"], "nested": {"start": [i]}} for i in range(2000)]
    pq.write_table(pa.Table.from_pylist(content), tmp_path / "a.parquet")

    assert rows(tmp_path / "a.parquet") == content
    assert list(read_examples(tmp_path / "a.parquet"))[1500].where == f"{tmp_path}/a.parquet: row 1501"


def test_json_lists_are_read_where_they_are_named(tmp_path: Path) -> None:
    """A folder's .json files mostly describe the examples beside them."""
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "dataset_info.json").write_text('{"about": "a.jsonl"}')
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.json").write_text('[{"a": 2}]')

    assert rows(tmp_path) == [{"a": 1}]
    assert rows(tmp_path / "b" / "b.json") == [{"a": 2}]
    with pytest.raises(DataError, match=r"b is a folder without examples; .*a \.json file is read where it is named"):
        rows(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \xff}\n', r"a\.jsonl:2: byte 0xff at column 7 is no UTF-8"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"a\.jsonl:2: '\[1\]' is no JSON object"),
        ("a.jsonl", b'{"a": 1}\n{"a": }\n', r"a\.jsonl:2:7: no JSON \(Expecting value\)"),
        ("a.jsonl", b"[" * 100_000 + b"\n", r"a\.jsonl:1:1: no JSON \(nested too deep\)"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 9999, mtime=0)[:40],
            r"a\.jsonl\.gz:\d+: the gzip data is cut off",
        ),
        ("a.parquet", b"PAR1 not", r"a\.parquet is no Parquet file, or is damaged"),
        ("a.csv", b"a,b\n", r"a\.csv: examples are read from \.jsonl, \.ndjson"),
    ],
)
def test_faults_of_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=message):
        rows(tmp_path / name)


def test_a_missing_file_and_a_folder_without_examples_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl does not exist; name a file of examples"):
        rows(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a folder without examples"):
        rows(tmp_path)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")

    with pytest.raises(DataError, match=r"a\.jsonl cannot be read"):
        rows(tmp_path / "a.jsonl")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(DataError, match=r"pip install 'llama-scale\[parquet\]'"):
        rows(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (Column(name="text"), {"txet": 1}, r"f:3: no field 'text'; the fields are 'txet'; did you mean 'txet'\?"),
        (Column(name="x", option="x_field"), {}, r"no field 'x' \(option x_field\); the fields are none; name the"),
        (Column(name="text"), {"text": None}, "field 'text' is null"),
        (Column(name="text"), {"text": 7}, "field 'text' is 7, and it must be a text that is not blank"),
        (Column(name="text"), {"text": " "}, "it must be a text that is not blank"),
        (Column(name="text", blank=True), {"text": ["a"]}, "it must be a text$"),
        (Column(name="t", form="texts"), {"t": []}, "it must be a text or a list of texts, none of them blank"),
        (Column(name="t", form="texts"), {"t": ["a", ""]}, "it must be a text or a list of texts"),
        (Column(name="n", form="integer"), {"n": True}, "it must be an integer$"),
        (Column(name="n", form="integers"), {"n": [1, "2"]}, "it must be an integer or a list of integers"),
        (Column(name="m", form="messages"), {"m": [{"role": "user"}]}, "it must be a list of {"),
        (Column(name="m", form="messages"), {"m": []}, "it must be a list of {"),
        (Column(name="text"), {"text": list(range(99))}, r"field 'text' is \[0, 1.*\.\.\., and it must be"),
    ],
)
def test_faults_of_fields_are_named(column: Column, value: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_example(Example("f:3", value), (column,))


def test_good_fields_and_absent_optional_ones_pass() -> None:
    columns = (
        Column(name="a"),
        Column(name="b", form="texts"),
        Column(name="c", form="integers", required=False),
        Column(name="d", blank=True),
        Column(name="e", form="texts", blank=True),
        Column(name="f", form="messages"),
    )
    values = {"a": "x", "b": ["x"], "d": "", "e": [], "f": [{"role": "user", "content": ""}]}
    check_example(Example("f:1", values), columns)
    assert Example("f:1", values)["a"] == "x"


def test_split_field_knows_the_usual_names(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"split": "{s}"}}\n' for s in ("train", "valid", "DEV", "test")))

    found = [name for name, _ in split_by_field(read_examples(tmp_path / "a.jsonl"), field="split")]

    assert found == ["train", "validation", "validation", "test"]
    (tmp_path / "a.jsonl").write_text('{"split": "extra"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: field 'split' is 'extra', which is no split; use train"):
        list(split_by_field(read_examples(tmp_path / "a.jsonl"), field="split"))


def test_shares_go_by_a_hash_of_row_or_key() -> None:
    examples = [Example(f"f:{i}", {"id": i // 10, "text": f"t{i}"}) for i in range(4000)]

    by_row = list(split_by_share(iter(examples), shares=(8, 1, 1), key=None))
    by_key = list(split_by_share(iter(examples), shares=(8, 1, 1), key="id"))

    assert [name for name, _ in by_row] == [
        name for name, _ in split_by_share(iter(examples), shares=(8, 1, 1), key=None)
    ]
    count = {name: sum(n == name for n, _ in by_row) for name in ("train", "validation", "test")}
    assert 3100 < count["train"] < 3300
    assert 320 < count["validation"] < 480
    splits_of_key: dict[int, set[str]] = {}
    for name, example in by_key:
        splits_of_key.setdefault(example["id"], set()).add(name)
    assert {len(names) for names in splits_of_key.values()} == {1}
    assert json.dumps(sorted({n for n, _ in by_key})) == '["test", "train", "validation"]'
    with pytest.raises(DataError, match=r"f:0: no field 'doc' \(option data\.key\)"):
        list(split_by_share(iter(examples), shares=(8, 1, 1), key="doc"))
