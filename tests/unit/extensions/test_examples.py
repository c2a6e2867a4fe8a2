from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llama_scale.errors import DataError
from llama_scale.extensions.examples import Column, FileTaskOptions, read_all, read_split


class Options(FileTaskOptions):
    def columns(self) -> tuple[Column, ...]:
        return (Column(name="text"),)


def options(**data: Any) -> Options:
    return Options.model_validate({"data": data})


def test_one_file_a_split(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    found = options(kind="split_files", train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl"))

    assert [e["text"] for e in read_split(found, "test")] == ["test"]
    assert [(name, e["text"]) for name, e in read_all(found)] == [("train", "train"), ("test", "test")]
    assert found.files() == (str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl"))
    with pytest.raises(DataError, match=r"the split 'validation' has no file; set data\.validation"):
        list(read_split(found, "validation"))
    with pytest.raises(ValidationError, match="names no file; give train, validation or test a path"):
        options(kind="split_files")


def test_a_field_and_shares_name_splits(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{i}", "part": "{"valid" if i % 5 == 0 else "train"}"}}\n' for i in range(50)))

    by_field = options(kind="split_field", path=str(path), field="part")
    assert len(list(read_split(by_field, "validation"))) == 10
    assert by_field.files() == (str(path),)
    by_share = options(kind="split_shares", path=str(path), train=1, validation=1, test=0)
    parts = [len(list(read_split(by_share, name))) for name in ("train", "validation", "test")]
    assert sum(parts) == 50
    assert parts[2] == 0
    assert min(parts[:2]) > 10


def test_rows_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"tex": "b"}\n')

    with pytest.raises(DataError, match=r"a\.jsonl:2: no field 'text'; .*did you mean 'tex'\?"):
        list(read_split(options(kind="split_files", train=str(tmp_path / "a.jsonl")), "train"))
