"""A small real text and a tokenizer trained on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_scale.data.documents import Source, find_source
from llama_scale.data.sentencepiece_training import train_sentencepiece
from llama_scale.resources import data_dir
from tests.unit.data.sentencepiece_models import name_of, train


@pytest.fixture(scope="session")
def sample() -> Source:
    """Return the text that the project ships."""
    return find_source([str(data_dir("configs") / "smoke" / "sample.jsonl.gz")])


@pytest.fixture(scope="session")
def text(sample: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text file with some of its lines, one an empty document."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    documents = [document.splitlines() for document in sample.documents()][:60]
    path.write_text("\n".join(["", *(line for lines in documents for line in lines)]) + "\n")
    return path


@pytest.fixture(scope="session")
def tokenizer(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SentencePiece model of 512 pieces."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_sentencepiece(find_source([str(text)]), folder, vocab_size=512)


MakeModel = Callable[[dict[str, Any]], Path]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Return SentencePiece models by their form (``sentencepiece_models.FORMS``), each trained once."""
    made: dict[str, Path] = {}

    def make(form: dict[str, Any]) -> Path:
        name = name_of(form)
        if name not in made:
            made[name] = train(form, tmp_path_factory.mktemp("model"))
        return made[name]

    return make
