"""sentence-transformers' folder of an embedding model gives the embeddings that the trained model has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama_scale.convert.embedding_folder import export_embeddings
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.shards import Layout
from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.errors import ConvertError
from llama_scale.evaluation.answering import Sampling, answering
from llama_scale.evaluation.source import Source, open_source
from llama_scale.extensions import discover
from llama_scale.extensions.task import TaskContext
from llama_scale.tasks.semantic_search_module import SemanticSearch
from tests.task_tokenizer import write_tokenizer
from tests.unit.convert.adapted import LORA, PREFIX, adapter_checkpoint, record
from tests.unit.convert.tiny import Tiny

TEXTS = ["Even drawing objects", "a", " The port for the corresponding proxy server is a number up to 65535. " * 3]
DATA = {"kind": "split_files", "train": "/nowhere.jsonl"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer puts a BOS before every text."""
    folder = tmp_path_factory.mktemp("base")
    Tiny(config={"vocab_size": 517, "eos_token_id": 1}).write(folder / "hf")
    write_tokenizer(folder / "hf", bos="<bos>")
    import_hf(folder / "hf", folder / "ck", layout=Layout())
    return folder


def task_entry(**options) -> dict:
    options = {"data": DATA, "max_query_tokens": 20, "max_document_tokens": 24, "query_prefix": "find: "} | options
    return {"name": "find", "kind": "semantic_search", "options": options}


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_the_trained_models(tmp_path, base, pooling):
    from sentence_transformers import SentenceTransformer

    entry = task_entry(pooling=pooling)
    ck = adapter_checkpoint(
        tmp_path / "ck",
        base=base / "ck",
        extensions=record({**LORA, "task": "find"}, tasks=(entry,)),
        layout=Layout(tp_size=2, pp_size=3),
    )
    seen: list[str | None] = []
    report = export_embeddings(ck, tmp_path / "st", proof=lambda folder, adapter: {"adapter": seen.append(adapter)})
    assert seen == ["a0"]
    assert (report["task"], report["adapter"]) == ("find", "a0")
    with open_source(str(ck), runs_dir=tmp_path) as source:
        made = answering(source, sampling=Sampling(), batch_size=2, trust_code=False)
        made.choose("a0", task="find")
        task = make_task(entry, base / "hf")
        queries = task.embed(made.model, [task.query_ids(text)[0] for text in TEXTS])
        documents = task.embed(made.model, [task.document_ids(text)[0] for text in TEXTS])
    # Whatever its own warnings are: they are the library's.
    model = SentenceTransformer(str(tmp_path / "st"), device="cpu")
    assert model.max_seq_length == 24
    found = model.encode(TEXTS, convert_to_tensor=True, batch_size=3)
    torch.testing.assert_close(found, documents, rtol=1e-4, atol=1e-4)
    short = [text.strip() for text in TEXTS[:2]]
    found = model.encode(short, prompt_name="query", convert_to_tensor=True)
    torch.testing.assert_close(found, queries[:2], rtol=1e-4, atol=1e-4)
    assert (queries[0] - documents[0]).abs().max() > 0.01


def make_task(entry: dict, tokenizer: Path) -> SemanticSearch:
    options = discover.read_options(discover.task(entry["kind"]), entry["options"])
    context = TaskContext(
        name="find", tokenizer=TaskTokenizer(tokenizer), seq_length=64, sizes={"hidden_size": 24}, seed=1
    )
    return SemanticSearch(options, context)


def test_what_cannot_be_an_embedding_folder(tmp_path, base):
    lora, prefix = {**LORA, "task": "find"}, {**PREFIX, "task": "find"}
    cases = [
        (record(LORA), {}, "has these tasks of kind semantic_search: none"),
        (record(lora, tasks=(task_entry(),)), {"task": "x"}, "--task 'x': checkpoint"),
        (record(prefix, tasks=(task_entry(),)), {}, "adapter 'a0' (prefix) cannot be merged"),
    ]
    for number, (extensions, more, message) in enumerate(cases):
        ck = adapter_checkpoint(tmp_path / f"ck{number}", base=base / "ck", extensions=extensions)
        with pytest.raises(ConvertError) as caught:
            export_embeddings(ck, tmp_path / "st", **more)
        assert message in str(caught.value)
        assert not (tmp_path / "st").exists()


def test_without_a_tokenizer_there_is_no_embedding_folder(tmp_path):
    Tiny().write(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "base", layout=Layout())
    extensions = record({**LORA, "task": "find"}, tasks=(task_entry(),))
    ck = adapter_checkpoint(tmp_path / "ck", base=tmp_path / "base", extensions=extensions)
    with pytest.raises(ConvertError, match="needs its tokenizer with an EOS token"):
        export_embeddings(ck, tmp_path / "st")


def test_sources_are_named_by_their_folder(base):
    with open_source(str(base / "hf"), runs_dir=base) as source:
        assert source == Source(folder=base / "hf", spec=None)
