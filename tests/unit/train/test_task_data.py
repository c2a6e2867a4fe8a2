from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_scale.errors import DataError
from llama_scale.extensions import discover
from llama_scale.extensions.examples import Example
from llama_scale.extensions.task import Feature, Task, TaskContext
from llama_scale.plan.run_plan import BatchPlan
from llama_scale.spec.run import RunSpec
from llama_scale.tasks.prompted import PromptedOptions
from llama_scale.train.run_tasks import RunTask, make_tasks
from llama_scale.train.task_data import TaskSamples
from llama_scale.train.task_data_pack import pack
from llama_scale.train.task_data_prepare import _digest, prepared_splits
from llama_scale.train.task_data_store import FeatureWriter, PreparedSplit
from tests.engines.specs import Case
from tests.task_tokenizer import write_tokenizer

SEQ = 16


@given(st.lists(st.integers(1, 50), max_size=200))
def test_packing_loses_nothing_and_fits(lengths: list[int]) -> None:
    rows = pack(lengths, size=50)

    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= 50 for row in rows)
    assert len(rows) <= 11 / 9 * max(-(-sum(lengths) // 50), sum(length > 25 for length in lengths)) + 4
    assert rows == pack(lengths, size=50)


def feature(start: int, size: int, **more: Any) -> Feature:
    weights = np.zeros(size, np.float32)
    weights[size // 2 :] = 1.0
    weights[0] = 0.0
    return Feature(tokens=np.arange(start, start + size), weights=weights, **more)


class Numbers(Task):
    """Example i is tokens base + i, of i % 5 + 2 each."""

    base = 0
    count = 40

    def examples(self, split: str) -> Iterable[Example]:
        return (Example(f"{split}:{i}", {"i": i}) for i in range(self.count))

    def encode(self, example: Example) -> Sequence[Feature]:
        i = example["i"]
        return [] if i == 7 else [feature(self.base + i, i % 5 + 2, cut=i == 3)]


class Pairs(Numbers):
    """A head of its own: one feature a row, with an extra array, two segments."""

    base = 200
    packable = False

    def encode(self, example: Example) -> Sequence[Feature]:
        weights = np.array([1, 0, 0, 0, 0])
        tokens = np.arange(5) + self.base + example["i"]
        segments = np.array([0, 0, 1, 1, 1])
        return [Feature(tokens=tokens, weights=weights, segments=segments, extra={"i": np.array([example["i"], 1])})]


class _Options(PromptedOptions):
    pass


def run_task(kind: type[Task], name: str, number: int, *, weight: float = 1.0, head: str = "lm") -> RunTask:
    options = _Options.model_validate({"data": {"kind": "split_files", "train": "/nowhere"}})
    context = TaskContext(name=name, tokenizer=None, seq_length=SEQ, sizes={}, seed=1)  # type: ignore[arg-type]
    return RunTask(
        name=name,
        number=number,
        kind=name,
        weight=weight,
        head=head,  # type: ignore[arg-type]
        adapter=f"a-{name}",
        task=kind(options, context),
    )


def task_spec(**changes: Any) -> RunSpec:
    document = Case(seq_length=SEQ).spec().model_dump(by_alias=True)
    document |= {
        "data": {"kind": "tasks", "seq_length": SEQ},
        "tokenizer": {"kind": "hf", "path": "/nowhere"},
        "model": {**document["model"], "vocab_size": 300},
        **changes,
    }
    return RunSpec.model_validate(document)


@pytest.fixture
def tasks() -> list[RunTask]:
    return [run_task(Numbers, "numbers", 0, weight=2.0), run_task(Pairs, "pairs", 1, head="own")]


@pytest.fixture
def samples(tasks: list[RunTask], tmp_path: Path) -> TaskSamples:
    prepared = prepared_splits(task_spec(), tasks, "train", folder=tmp_path, prepares=True)
    return TaskSamples(tasks, prepared, split="train", seed=5, seq_length=SEQ)


def plan(*, micro: int = 2, accumulation: int = 3, replicas: int = 1) -> BatchPlan:
    return BatchPlan(
        global_batch=micro * accumulation * replicas, micro_batch=micro, accumulation=accumulation, seq_length=SEQ
    )


def test_rows_hold_whole_features_as_documents_of_their_own(samples: TaskSamples) -> None:
    seen: list[int] = []
    for number in range(len(samples._prepared[0])):
        row = samples._arrays(0, number)
        documents = row["documents"]
        for document in range(documents.max() + 1):
            places = np.flatnonzero(documents == document)
            tokens = row["tokens"][places]
            seen.append(int(tokens[0]))
            size = len(places)
            assert size == tokens[0] % 5 + 2
            assert np.array_equal(tokens, np.arange(tokens[0], tokens[0] + size))
            assert np.array_equal(row["position_ids"][places], np.arange(size))
            expected = feature(0, size).weights
            assert np.array_equal(row["loss_mask"][places[:-1]], expected[1:])
            assert row["loss_mask"][places[-1]] == 0.0  # its successor is of another document
            assert np.array_equal(row["labels"][places[:-1]], tokens[1:])
        assert not row["loss_mask"][documents == -1].any()
    assert sorted(seen) == [i for i in range(40) if i != 7]


def test_heads_of_their_own_get_one_feature_a_row_with_its_extra(samples: TaskSamples) -> None:
    [batch] = samples.alone(1).global_batch(0, batch=plan(micro=4, accumulation=1), dp_rank=0, dp_size=1)

    first = batch["tokens"][:, 0] - 200
    assert batch["extra"]["pairs"]["i"].tolist() == [[int(i), 1] for i in first]
    assert batch["documents"][0].tolist() == [0, 0, 1, 1, 1, *[-1] * 11]
    assert batch["position_ids"][0, :5].tolist() == [0, 1, 0, 1, 2]
    assert batch["loss_mask"].sum(1).tolist() == [1.0] * 4
    assert batch["loss_mask"][:, 0].tolist() == [1.0] * 4
    [route] = batch["routes"]
    assert (route.adapter, route.task, route.start, route.stop, route.pool) == ("a-pairs", "pairs", 0, 4, (4,))


def test_weights_decide_how_often_a_task_comes(samples: TaskSamples) -> None:
    located = [samples.locate(k)[0] for k in range(300)]

    assert located.count(0) == 200
    assert all(abs(located[:n].count(0) - n * 2 / 3) < 1 for n in range(300))


def test_every_row_comes_once_an_epoch_in_another_order(samples: TaskSamples) -> None:
    alone = samples.alone(0)
    rows = len(alone._prepared[0])

    first, second = ([alone.locate(k + epoch * rows)[1] for k in range(rows)] for epoch in (0, 1))

    assert sorted(first) == sorted(second) == list(range(rows))
    assert first != second
    late = [alone.locate(k)[1] for k in range(10 * rows, 10 * rows + 3)]
    assert [alone.locate(k)[1] for k in range(rows)] == first, "earlier epochs can be asked for again"
    assert late == [samples.alone(0).locate(k)[1] for k in range(10 * rows, 10 * rows + 3)]


@pytest.mark.parametrize(("micro", "accumulation", "dp"), [(1, 12, 1), (2, 3, 2), (3, 1, 4), (1, 4, 3)])
def test_a_step_reads_the_same_rows_on_every_layout(
    samples: TaskSamples, micro: int, accumulation: int, dp: int
) -> None:
    reference = samples.global_batch(24, batch=plan(micro=12, accumulation=1), dp_rank=0, dp_size=1)[0]["tokens"]

    parts = [
        samples.global_batch(24, batch=plan(micro=micro, accumulation=accumulation, replicas=dp), dp_rank=d, dp_size=dp)
        for d in range(dp)
    ]

    rows = [row for m in range(accumulation) for d in range(dp) for row in parts[d][m]["tokens"].tolist()]
    assert rows == reference.tolist()
    for m in range(accumulation):
        for d in range(dp):
            routes = parts[d][m]["routes"]
            assert [route.start for route in routes] == [0, *(route.stop for route in routes[:-1])]
            assert routes[-1].stop == micro
            for route in routes:
                assert route.pool[d] == route.stop - route.start
                assert route.pool == next(r.pool for r in parts[0][m]["routes"] if r.task == route.task) or not any(
                    r.task == route.task for r in parts[0][m]["routes"]
                )


def test_replicas_without_rows_of_an_own_head_have_an_empty_route(samples: TaskSamples) -> None:
    found = [
        samples.global_batch(0, batch=plan(micro=1, accumulation=1, replicas=3), dp_rank=d, dp_size=3)[0]
        for d in range(3)
    ]

    assert [[(r.task, r.start, r.stop, r.pool) for r in micro["routes"]] for micro in found] == [
        [("numbers", 0, 1, (1, 1, 0)), ("pairs", 1, 1, (0, 0, 1))],
        [("numbers", 0, 1, (1, 1, 0)), ("pairs", 1, 1, (0, 0, 1))],
        [("pairs", 0, 1, (0, 0, 1))],
    ]
    assert found[0]["extra"]["pairs"]["i"].shape == (0, 2)


@pytest.mark.parametrize(("micro", "accumulation", "dp"), [(1, 1, 1), (3, 2, 2), (5, 1, 1), (12, 1, 2), (1, 3, 7)])
@pytest.mark.parametrize("limit", [9, 1000])
def test_evaluation_counts_each_row_once_in_groups_of_its_own_order(
    samples: TaskSamples, micro: int, accumulation: int, dp: int, limit: int
) -> None:
    batch = plan(micro=micro, accumulation=accumulation, replicas=dp)
    for number, task in enumerate(samples.tasks):
        alone = samples.alone(number)
        rows = sorted(alone.locate(k)[1] for k in range(min(limit, len(alone))))
        expected = [alone._arrays(0, row)["tokens"].tolist() for row in rows]
        groups: list[list[list[int]]] = []
        for d in range(dp):
            group: list[list[int]] = []
            for micros in alone.evaluation(limit, batch=batch, dp_rank=d, dp_size=dp):
                for one in micros:
                    assert [r.start for r in one["routes"]] == [0, *(r.stop for r in one["routes"][:-1])]
                    assert one["routes"][-1].stop == micro
                    extra = iter(one.get("extra", {}).get("pairs", {}).get("i", ()))
                    for route in one["routes"]:
                        assert (route.adapter, route.task, route.pool) == (task.adapter, task.name, ())
                        read = one["tokens"][route.start : route.stop]
                        if route.padding:
                            assert not one["loss_mask"][route.start :].any() and not read.any()
                            continue
                        group += read.tolist()
                        if number == 1:
                            assert [int(next(extra)[0]) for _ in read] == (read[:, 0] - 200).tolist()
                        if not route.continues:
                            groups.append(group)
                            group = []
            assert not group
        assert sorted(row for group in groups for row in group) == sorted(expected)
        if task.head == "own":
            assert sorted(groups) == sorted(expected[k : k + 8] for k in range(0, len(expected), 8))


def test_preparation_counts_and_is_done_once(
    tasks: list[RunTask], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    [prepared, _] = prepared_splits(task_spec(), tasks, "train", folder=tmp_path, prepares=True)

    record = prepared.record
    assert (record.examples, record.features, record.dropped, record.cut, record.cut_tokens) == (40, 39, 1, 1, 1)
    assert "task numbers, train: 40 examples -> 39 sequences" in caplog.text
    assert "1 examples were LEFT OUT" in caplog.text
    assert "fields that are not read: 'i'" in caplog.text
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    prepared_splits(task_spec(), tasks, "train", folder=tmp_path, prepares=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == made
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]


def test_other_ranks_wait_for_the_one_that_prepares(tasks: list[RunTask], tmp_path: Path) -> None:
    found: list[Any] = []
    waiting = threading.Thread(
        target=lambda: found.append(prepared_splits(task_spec(), tasks, "train", folder=tmp_path, prepares=False))
    )
    waiting.start()

    prepared_splits(task_spec(), tasks, "train", folder=tmp_path, prepares=True)
    waiting.join(30)

    assert len(found[0]) == 2


class Noted(Numbers):
    def notes(self) -> Sequence[str]:
        return ["mind the gap"]


def test_what_a_task_notes_is_told_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    [prepared] = prepared_splits(task_spec(), [run_task(Noted, "noted", 0)], "train", folder=tmp_path, prepares=True)

    assert ("WARNING", "task noted, train: mind the gap") in [(r.levelname, r.message) for r in caplog.records]
    assert (list(prepared.record.unread), list(prepared.record.notes)) == (["i"], ["mind the gap"])


def test_a_record_of_0_1_is_read(tasks: list[RunTask], tmp_path: Path) -> None:
    [prepared, _] = prepared_splits(task_spec(), tasks, "train", folder=tmp_path, prepares=True)
    [file] = tmp_path.glob("numbers-*/train/record.json")
    old = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("unread", "notes")}
    file.write_text(json.dumps(old))

    assert PreparedSplit(file.parent).record.examples == prepared.record.examples


@pytest.mark.parametrize(
    ("kind", "given", "digest"),
    [
        ("sft", {"form": "messages"}, "07ec705bcda7"),
        ("qa_generative", {}, "aaee55387c54"),
        ("qa_extractive", {}, "941d38af3d54"),
        ("summarization", {}, "f53ca03dbbc5"),
        ("translation", {"languages": {"source": "en", "target": "de"}}, "4e04900452f3"),
        ("semantic_search", {}, "690d53567973"),
    ],
)
def test_rows_that_0_1_prepared_are_found(kind: str, given: dict[str, Any], digest: str) -> None:
    """The digests are those that fc49ae9 computes; options that came later leave them as they were."""
    descriptor = importlib.import_module(f"llama_scale.tasks.{kind}").DESCRIPTOR
    data = {"kind": "split_files", "train": "/nowhere.jsonl"}

    def found(**more: Any) -> str:
        options = discover.read_options(descriptor, {"data": data, **given, **more})
        return _digest(task_spec(), SimpleNamespace(kind=kind, task=SimpleNamespace(options=options)))  # type: ignore[arg-type]

    assert found() == digest
    assert found(ignore_fields=["weight"]) != digest


def test_packing_can_be_off(tasks: list[RunTask], tmp_path: Path) -> None:
    spec = task_spec(data={"kind": "tasks", "seq_length": SEQ, "packing": False})

    [prepared, _] = prepared_splits(spec, tasks, "train", folder=tmp_path, prepares=True)

    assert len(prepared) == prepared.record.features == 39


def test_a_failed_preparation_leaves_nothing(tasks: list[RunTask], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write the examples of task 'numbers' to .*: Not a directory"):
        prepared_splits(task_spec(), tasks[:1], "train", folder=tmp_path / "file", prepares=True)

    spec = task_spec(model={**Case().spec().model_dump(by_alias=True)["model"], "vocab_size": 20})
    with pytest.raises(DataError, match=r"task 'numbers', split 'train': the tokenizer gives token id \d+, but model"):
        prepared_splits(spec, tasks[:1], "train", folder=tmp_path / "new", prepares=True)
    assert [path.name for path in (tmp_path / "new").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Feature(tokens=np.arange(17), weights=np.ones(17)), "17 tokens are none, or more than data.seq_length=16"),
        (Feature(tokens=np.arange(0), weights=np.ones(0)), "0 tokens are none"),
        (Feature(tokens=np.arange(3), weights=np.ones(2)), "do not have the shape of its 3 tokens"),
        (Feature(tokens=np.arange(3), weights=np.array([0, 0.5, 1])), "weights are not 0 and 1"),
        (Feature(tokens=np.arange(3), weights=np.zeros(3)), "with at least one 1"),
        (Feature(tokens=np.arange(3), weights=np.ones(3)), "weight is 1 at the first token of a segment"),
        (
            Feature(tokens=np.arange(3), weights=np.array([0, 1, 1]), segments=np.array([0, 2, 2])),
            "segments do not ascend from 0 without gaps",
        ),
    ],
)
def test_features_that_break_the_promise_name_the_plugin(tmp_path: Path, made: Feature, message: str) -> None:
    with (
        FeatureWriter(tmp_path, where="task 't'", seq_length=16, own_head=False) as writer,
        pytest.raises(
            DataError, match=f"task 't': Task.encode made a feature whose .*{message}.*; mend the task's plugin"
        ),
    ):
        writer.add([made])


def test_extra_arrays_must_be_alike(tmp_path: Path) -> None:
    def write(*extras: dict[str, np.ndarray]) -> PreparedSplit:
        with FeatureWriter(tmp_path, where="task 't'", seq_length=16, own_head=True) as writer:
            writer.add([feature(0, 4, extra=extra) for extra in extras])
            writer.finish(packing=True)
        return PreparedSplit(tmp_path)

    with pytest.raises(DataError, match=r"extra \['a'\] and \['b'\]; every feature needs the same names"):
        write({"a": np.zeros(1)}, {"b": np.zeros(1)})
    with pytest.raises(DataError, match="extra arrays 'a' of several shapes"):
        write({"a": np.zeros(1)}, {"a": np.zeros(2)})
    found = write({"a": np.zeros(2, np.float16)}, {"a": np.ones(2, np.float16)})
    assert len(found) == 2, "rows with extra arrays hold one feature"
    assert found.extra["a"].dtype == np.float32


def test_empty_splits_are_named(tmp_path: Path) -> None:
    class Nothing(Numbers):
        count = 0

    class Long(Numbers):
        def encode(self, example: Example) -> Sequence[Feature]:
            return []

    for kind, message in ((Nothing, "task 'x', split 'train' has no examples"), (Long, "all 40 are too long")):
        with pytest.raises(DataError, match=message):
            prepared_splits(task_spec(), [run_task(kind, "x", 0)], "train", folder=tmp_path, prepares=True)
    with pytest.raises(DataError, match="no task has a weight above 0"):
        TaskSamples([], [], split="train", seed=1, seq_length=SEQ)


def test_tasks_of_a_spec_are_loaded_with_their_adapters(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    data = {"kind": "split_files", "train": "/nowhere.jsonl"}
    sections = {
        "tasks": (
            {"name": "sum", "kind": "summarization", "weight": 3.0, "options": {"data": data}},
            {"name": "find", "kind": "semantic_search", "options": {"data": data}},
        ),
        "adapters": ({"name": "b", "kind": "lora", "task": "find"}, {"name": "a", "kind": "lora", "task": "sum"}),
        "tokenizer": {"kind": "hf", "path": str(tmp_path / "tokenizer")},
    }
    found = make_tasks(task_spec(**sections))

    assert [(t.name, t.number, t.weight, t.head, t.adapter) for t in found] == [
        ("sum", 0, 3.0, "lm", "a"),
        ("find", 1, 1.0, "own", "b"),
    ]
    assert found[0].task.context.sizes["vocab_size"] == 300
    joint = task_spec(**sections, mixture={"objective": "joint"})
    assert {task.adapter for task in make_tasks(joint)} == {None}
    assert make_tasks(Case().spec()) == []
