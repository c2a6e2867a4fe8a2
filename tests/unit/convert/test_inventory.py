"""A folder's tensors against its config.json: numbers that are far from the files cost no memory."""

from __future__ import annotations

import resource

import pytest

from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.shards import Layout
from llama_scale.errors import ConvertError
from tests.unit.convert.tiny import Tiny


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 10_000, r"says num_hidden_layers=10000, the folder has tensors of 6 layers"),
        ("num_hidden_layers", 10**9, r"num_hidden_layers is 1000000000, more than the 10,000 that are possible"),
        ("num_key_value_heads", 4096, r"num_key_value_heads=4096 does not divide num_attention_heads=12"),
        ("vocab_size", 10**8, r"embed_tokens\.weight has the shape \[61, 24\], config\.json asks for \[1000"),
    ],
)
def test_numbers_far_from_the_files_are_refused_before_anything_is_made_of_them(tmp_path, key, value, message):
    source = Tiny(config={key: value}).write(tmp_path / "hf", tensors=Tiny().tensors())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConvertError, match=message):
        import_hf(source, tmp_path / "ck", layout=Layout())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
