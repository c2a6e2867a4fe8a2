from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from llama_scale.data.reader import TokenFile
from llama_scale.data.writer import TokenFileWriter
from llama_scale.errors import DataError, LaunchError
from llama_scale.simulate import tokens
from llama_scale.simulate.inputs import need_libraries, survey, write_tokens
from llama_scale.simulate.shrink import shrink
from llama_scale.simulate.tokenizer import SIZE, SPECIAL, write_tokenizer
from llama_scale.spec.run import RunSpec
from tests.distributions import install
from tests.task_tokenizer import write_tokenizer as write_real_tokenizer
from tests.unit.simulate.strategies import checked
from tests.unit.spec.documents import INLINE, document

MISSING = "/nowhere/at/all"


def write_ids(prefix: Path, *documents: list[int], vocab_size: int) -> Path:
    with TokenFileWriter(prefix, vocab_size=vocab_size) as writer:
        for ids in documents:
            writer.add(np.array(ids), [len(ids)])
        writer.commit()
    return prefix


def indexed(*prefixes: Path | str, **sections: Any) -> RunSpec:
    blend = [{"path": str(prefix)} for prefix in prefixes]
    data = {"kind": "indexed", "blend": blend, "seq_length": 128}
    return checked(document(model=INLINE | {"vocab_size": 1000}, data=data, **sections))


def on_tasks(*tasks: dict[str, Any], tokenizer: str, seq_length: int = 512) -> RunSpec:
    data = {"kind": "tasks", "seq_length": seq_length}
    named = [{"name": f"task{number}", **task} for number, task in enumerate(tasks)]
    return checked(
        document(
            model=INLINE | {"vocab_size": 700},
            data=data,
            tasks=named,
            tokenizer={"kind": "hf", "path": tokenizer},
        )
    )


@pytest.fixture
def real_tokenizer(tmp_path: Path) -> str:
    return str(write_real_tokenizer(tmp_path / "tokenizer"))


def test_token_files_are_sampled_or_made_up(tmp_path: Path) -> None:
    real = write_ids(tmp_path / "real", [7, 8, 9], [500, 999], vocab_size=1000)
    spec = indexed(real, MISSING)

    inputs = survey(spec, tmp_path / "inputs")
    small, changes = shrink(spec, inputs)
    write_tokens(spec, small)

    assert [part.path for part in small.data.blend] == [str(tmp_path / f"inputs/tokens-{n}") for n in (0, 1)]  # type: ignore[union-attr]
    first = TokenFile(str(tmp_path / "inputs" / "tokens-0"))
    size = small.model.vocab_size
    assert list(first.tokens[:5]) == [7, 8, 9, 500 % size, 999 % size]
    assert len(first) >= 128
    made = TokenFile(str(tmp_path / "inputs" / "tokens-1"))
    assert made.tokens.max() < size
    why = {change.field: change.why for change in changes}
    assert why["data.blend[0].path"] == "its first documents"
    assert why["data.blend[1].path"] == "not here: random tokens"


def test_ids_outside_the_vocabulary_are_named(tmp_path: Path) -> None:
    bad = write_ids(tmp_path / "bad", [1, 2, 3], [4, 1000, 1001], vocab_size=2000)
    with pytest.raises(
        LaunchError, match=r"bad.bin: token 1 of document 1 is 1000, and the model knows .*vocab_size=1000 \(2 such"
    ):
        survey(indexed(bad), tmp_path / "inputs")


def test_every_damaged_file_is_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_ids(tmp_path / name, [1, 2, 3], vocab_size=1000)
        (tmp_path / f"{name}.bin").write_bytes(b"\0")
    with pytest.raises(LaunchError, match=r"(?s)one\.bin.*two\.bin"):
        survey(indexed(tmp_path / "one", tmp_path / "two"), tmp_path / "inputs")


def test_half_a_pair_is_a_fault(tmp_path: Path) -> None:
    prefix = write_ids(tmp_path / "half", [1, 2], vocab_size=1000)
    (tmp_path / "half.idx").unlink()
    with pytest.raises(DataError, match=r"half\.idx is missing"):
        tokens.check_ids(str(prefix), vocab_size=1000)
    with pytest.raises(LaunchError, match=r"half\.idx is missing"):
        survey(indexed(prefix), tmp_path / "inputs")


def test_tokenizer_that_is_here_stays_and_the_vocabulary_with_it(tmp_path: Path, real_tokenizer: str) -> None:
    spec = indexed(MISSING, tokenizer={"kind": "hf", "path": real_tokenizer})
    inputs = survey(spec, tmp_path / "inputs")
    small, _ = shrink(spec, inputs)
    assert small.tokenizer == spec.tokenizer
    assert small.model.vocab_size >= inputs.tokenizer_size == 512


def test_tokenizer_that_is_not_here_is_left_out_of_token_runs(tmp_path: Path) -> None:
    spec = indexed(MISSING, tokenizer={"kind": "hf", "path": MISSING})
    small, changes = shrink(spec, survey(spec, tmp_path / "inputs"))
    assert small.tokenizer is None
    assert [change.why for change in changes if change.field == "tokenizer"] == ["not here"]


def test_damaged_tokenizer_is_a_fault(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    spec = indexed(MISSING, tokenizer={"kind": "hf", "path": str(folder)})
    with pytest.raises(LaunchError, match="is no tokenizer, or is damaged"):
        survey(spec, tmp_path / "inputs")


def test_made_tokenizer_reads_any_text_back(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "made")
    made = Tokenizer.from_file(str(tmp_path / "made" / "tokenizer.json"))
    text = "Größe: 3 € \n日本 \t"
    ids = made.encode(text).ids
    assert len(ids) == len(text.encode())
    assert made.decode(ids) == text
    assert made.get_vocab_size() == SIZE
    assert made.encode(SPECIAL[1]).ids == [257]


def rows(path: Path, *, count: int = 3000) -> Path:
    lines = [
        {"part": "train" if n % 10 else "valid", "body": f"text {n} of many", "short": f"text {n}"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def summaries(path: Path | str, **options: Any) -> dict[str, Any]:
    data = {"kind": "split_field", "path": str(path), "field": "part"}
    fields = {"document_field": "body", "summary_field": "short"}
    return {"kind": "summarization", "options": {"data": data, **fields, **options}}


def lines_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_first_rows_of_each_split_are_taken(tmp_path: Path, real_tokenizer: str) -> None:
    spec = on_tasks(summaries(rows(tmp_path / "rows.jsonl")), tokenizer=real_tokenizer)
    small, changes = shrink(spec, survey(spec, tmp_path / "inputs"))

    data = small.tasks[0].options["data"]
    assert data["kind"] == "split_files"
    assert data["test"] is None
    assert [row["short"] for row in lines_of(data["validation"])][:2] == ["text 0", "text 10"]
    assert len(lines_of(data["train"])) == 512
    assert {change.field: change.why for change in changes}["tasks[0].options.data"] == "its first rows"


def test_row_that_a_task_cannot_use_is_named(tmp_path: Path, real_tokenizer: str) -> None:
    path = rows(tmp_path / "rows.jsonl", count=50)
    with path.open("a") as file:
        file.write('{"part": "train", "body": ""}\n')
    with pytest.raises(LaunchError, match=r"task 'task0': .*rows\.jsonl:51: field 'body'"):
        survey(on_tasks(summaries(path), tokenizer=real_tokenizer), tmp_path / "inputs")


def test_sample_rows_stand_in_under_the_names_of_the_spec(tmp_path: Path, real_tokenizer: str) -> None:
    spec = on_tasks(summaries(MISSING + ".jsonl"), tokenizer=real_tokenizer)
    small, changes = shrink(spec, survey(spec, tmp_path / "inputs"))

    row = lines_of(small.tasks[0].options["data"]["train"])[0]
    assert set(row) == {"body", "short"}
    assert "not here: sample rows" in {c.field: c.why for c in changes}["tasks[0].options.data"]


def test_options_that_sample_rows_do_not_fit_are_left_out(tmp_path: Path, real_tokenizer: str) -> None:
    data = {"kind": "split_field", "path": MISSING + ".jsonl"}
    options = {"data": data, "corpus": MISSING + "/corpus.jsonl", "positive_field": "doc"}
    spec = on_tasks({"kind": "semantic_search", "options": options}, tokenizer=real_tokenizer)
    small, changes = shrink(spec, survey(spec, tmp_path / "inputs"))
    assert small.tasks[0].options["corpus"] is None
    assert "tasks[0].options.corpus" in {change.field for change in changes}


def test_rows_are_made_longer_for_bytes_and_cut_where_too_long(tmp_path: Path) -> None:
    spec = on_tasks(
        summaries(rows(tmp_path / "rows.jsonl", count=50), overlong="error"), tokenizer=MISSING, seq_length=64
    )
    small, changes = shrink(spec, survey(spec, tmp_path / "inputs"))
    assert small.data.seq_length == 256
    assert small.tasks[0].options["overlong"] == "truncate_right"
    assert small.model.vocab_size >= SIZE
    assert {c.field: c.why for c in changes}["tasks[0].options.data"] == "the tokenizer is not here: sample rows"


def test_long_rows_are_shortened_as_far_as_options_allow(tmp_path: Path, real_tokenizer: str) -> None:
    data = {"kind": "split_field", "path": MISSING + ".jsonl"}
    options = {"data": data, "max_query_tokens": 100, "max_document_tokens": 500}
    task = {"kind": "semantic_search", "options": options}
    spec = on_tasks(task, tokenizer=real_tokenizer, seq_length=2000)
    small, _ = shrink(spec, survey(spec, tmp_path / "inputs"))
    assert small.data.seq_length == 1024


def test_form_that_sample_rows_do_not_have_is_left_out(tmp_path: Path, real_tokenizer: str) -> None:
    data = {"kind": "split_field", "path": MISSING + ".jsonl"}
    spec = on_tasks({"kind": "sft", "options": {"data": data, "form": "pairs"}}, tokenizer=real_tokenizer)
    small, _ = shrink(spec, survey(spec, tmp_path / "inputs"))
    assert small.tasks[0].options["form"] == "auto"


BARE = """
from llama_scale.extensions.api import TaskDescriptor
from llama_scale.extensions.examples import FileTaskOptions

DESCRIPTOR = TaskDescriptor(
    name="bare", options=FileTaskOptions, implementation="none:None", summary="for tests", files=FileTaskOptions.files
)
"""


def test_task_without_files_and_sample_is_refused(
    tmp_path: Path, real_tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    points = {"llama_scale.tasks": {"bare": "bare_for_simulation:DESCRIPTOR"}}
    install(site, "bare", points=points, modules={"bare_for_simulation": BARE})
    monkeypatch.syspath_prepend(str(site))
    task = {"kind": "bare", "options": {"data": {"kind": "split_field", "path": MISSING + ".jsonl"}}}
    with pytest.raises(
        LaunchError, match="task 'task0': its files or tokenizer are not on this machine, and kind bare"
    ):
        survey(on_tasks(task, tokenizer=real_tokenizer), tmp_path / "inputs")


def test_light_install_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    need_libraries()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "numpy") else object())
    with pytest.raises(
        LaunchError, match=r"needs torch, numpy, not installed here: pip install 'llama-scale\[train\]'"
    ):
        need_libraries()
