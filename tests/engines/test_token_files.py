"""Megatron-Core itself reads what `data build` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llama_scale.data.build import build_token_files
from llama_scale.data.documents import find_source
from llama_scale.data.reader import TokenFile
from llama_scale.data.sentencepiece_training import train_sentencepiece
from llama_scale.data.writer import TokenFileWriter, token_dtype
from llama_scale.resources import data_dir

# megatron.core.datasets warns at import of missing CUDA packages and of torch.jit; the product does not import it.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_megatron_core_reads_the_files(tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    source = find_source([str(data_dir("configs") / "smoke" / "sample.jsonl.gz")])
    tokenizer = train_sentencepiece(source, tmp_path, vocab_size=1000)
    build_token_files(source, tokenizer, tmp_path / "corpus")

    dataset = IndexedDataset(str(tmp_path / "corpus"), mmap=True)

    ours = TokenFile(str(tmp_path / "corpus"))
    assert len(dataset) == len(ours) == 740
    assert dataset.document_indices.tolist() == list(range(741))
    for i in range(len(ours)):
        assert np.array_equal(dataset[i], ours.read(i, 0, int(ours.lengths[i])))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_499, np.uint16), (65_500, np.int32)])
def test_integer_type_is_megatron_cores(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

    assert token_dtype(vocab_size) is dtype
    assert DType.optimal_dtype(vocab_size) is dtype
    with TokenFileWriter(tmp_path / "c", vocab_size=vocab_size) as writer:
        writer.add(np.array([1, vocab_size - 1, 3]), [2, 1])
        writer.commit()
    dataset = IndexedDataset(str(tmp_path / "c"))
    assert [dataset[i].tolist() for i in range(2)] == [[1, vocab_size - 1], [3]]
