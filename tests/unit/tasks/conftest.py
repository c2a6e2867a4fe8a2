"""Tasks on examples in memory, with a small real tokenizer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.extensions import discover
from llama_scale.extensions.examples import Example
from llama_scale.extensions.task import Task, TaskContext
from tests.task_tokenizer import write_tokenizer

DATA = {"kind": "split_files", "train": "/nowhere.jsonl"}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TaskTokenizer:
    return TaskTokenizer(write_tokenizer(tmp_path_factory.mktemp("tasks") / "tokenizer"))


MakeTask = Callable[..., Task]


@pytest.fixture
def make_task(tokenizer: TaskTokenizer) -> MakeTask:
    def make(kind: str, *, seq_length: int = 96, tokenizer: TaskTokenizer = tokenizer, **options: Any) -> Task:
        module = importlib.import_module(f"llama_scale.tasks.{kind}")
        typed = discover.read_options(module.DESCRIPTOR, {"data": DATA, **options})
        context = TaskContext(name=kind, tokenizer=tokenizer, seq_length=seq_length, sizes={"hidden_size": 8}, seed=1)
        implementation: type[Task] = discover.implementation(module.DESCRIPTOR)
        return implementation(typed, context)

    return make


def example(**values: Any) -> Example:
    return Example("rows.jsonl:7", values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
