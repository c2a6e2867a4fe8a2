"""What came with a model survives whatever is made of it; transformers reads the folders and says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LlamaConfig

from llama_scale.convert.assemble import export_mixture
from llama_scale.convert.embedding_folder import export_embeddings
from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.folders import find_checkpoint
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.models import stop_ids
from llama_scale.convert.peft import export_peft
from llama_scale.convert.shards import Layout
from llama_scale.convert.tokenizer import write_tokenizer as copy_tokenizer
from llama_scale.convert.turn_end import turn_end
from llama_scale.errors import ConvertError
from tests.task_tokenizer import CHATML, write_tokenizer
from tests.unit.convert.adapted import LORA, adapter_checkpoint, record
from tests.unit.convert.lines import (
    CHAT,
    GENERATION,
    OTHER,
    SPECIAL,
    START,
    TEXT_END,
    TURN_END,
    VOCAB,
    exported,
    imported,
    make_run,
    read,
    settings_of,
    stops_of,
    write_folder,
)

EXTRA = {"_name_or_path": "/home/someone/model", "use_cache": True, "mine": {"deep": [1, None]}, "pretraining_tp": 1}


# (config.json, generation_config.json, tokenizer's EOS, whether a run trained chats) -> the union, in order
UNIONS = {
    "llama-3.0-instruct": ([9, OTHER], {"eos_token_id": [9, OTHER]}, "<|end|>", True, [9, OTHER, TEXT_END, TURN_END]),
    "only-generation": (None, {"eos_token_id": [OTHER, 9]}, "<|end|>", True, [OTHER, 9, TEXT_END, TURN_END]),
    "config-first": (9, {"eos_token_id": OTHER}, "<|end|>", False, [9, OTHER, TEXT_END]),
    "only-config": (TURN_END, None, "<|im_end|>", True, [TURN_END]),
    "untrained": (TEXT_END, {"eos_token_id": TEXT_END}, "<|end|>", False, [TEXT_END]),
    "no-id-anywhere": (None, {"do_sample": False}, None, True, [TURN_END]),
}


@pytest.mark.parametrize("case", UNIONS)
def test_stop_tokens_of_a_run_are_the_union(tmp_path, case):
    config, generation, eos, chats, union = UNIONS[case]
    ck = imported(tmp_path, config={"eos_token_id": config}, generation=generation, eos=eos)
    run = make_run(tmp_path / "run", ck, init_from=ck, tokenizer=tmp_path / "source", tasks=(CHAT,) if chats else ())
    out = exported(run, tmp_path / "out")
    assert stops_of(out) == union
    assert AutoConfig.from_pretrained(out).eos_token_id in (union, *union[:1][: len(union) == 1])
    assert stop_ids(out) == tuple(union)


def test_settings_survive_every_form_of_export(tmp_path):
    tokens = {"bos_token_id": START, "eos_token_id": [OTHER, TEXT_END], "pad_token_id": 7}
    ck = imported(tmp_path, config=EXTRA | tokens, generation=GENERATION | tokens | {"pad_token_id": 8})
    task = {"name": "find", "kind": "semantic_search", "options": {"data": CHAT["options"]["data"]}}
    record_ = record(LORA, tasks=(CHAT, task))
    adapters = adapter_checkpoint(tmp_path / "adapters", base=ck, extensions=record_)
    tuned = make_run(tmp_path / "run", ck, init_from=ck, tokenizer=tmp_path / "source", tasks=(CHAT, task))
    export_hf(tuned, tmp_path / "hf")
    export_hf(adapters, tmp_path / "merged", merge=True)
    export_mixture(adapters, tmp_path / "mixture")
    export_embeddings(tuned, tmp_path / "embeddings")
    export_peft(adapters, tmp_path / "peft")

    source = tmp_path / "source"
    for form in ("hf", "merged", "mixture", "embeddings"):
        assert stops_of(tmp_path / form) == [OTHER, TEXT_END, TURN_END], form
        assert settings_of(tmp_path / form) == settings_of(source), form
        config = read(tmp_path / form, "config.json")
        kept = {k: v for k, v in EXTRA.items() if k != "_name_or_path"}
        assert kept.items() <= config.items() and "_name_or_path" not in config
        assert (config["bos_token_id"], config["pad_token_id"]) == (START, 7)
        assert config["eos_token_id"] == read(tmp_path / form, "generation_config.json")["eos_token_id"]
    for form in ("hf", "merged", "mixture", "peft"):
        made = AutoTokenizer.from_pretrained(tmp_path / form, config=LlamaConfig())
        assert (
            made("music on the desktop").input_ids
            == AutoTokenizer.from_pretrained(source)("music on the desktop").input_ids
        )
        assert made.chat_template == CHATML
    # A task's texts end with the tokenizer's EOS, whichever stop token is the first of config.json.
    ids = AutoTokenizer.from_pretrained(tmp_path / "embeddings")("music").input_ids
    assert ids[-1] == TEXT_END


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
KEYS = st.text("abcxyz_", min_size=3, max_size=6).map("mine_".__add__)
SAMPLING = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0.1, 2),
        "top_p": st.floats(0.1, 1),
        "top_k": st.integers(1, 90),
        "repetition_penalty": st.floats(1, 2),
        "max_length": st.integers(30, 99),
        "bos_token_id": st.integers(0, 9),
        "pad_token_id": st.integers(0, 9),
        "suppress_tokens": st.lists(st.integers(0, 9), min_size=1, max_size=2),
    },
)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, its import, and a run that was fully fine-tuned from it."""
    folder = tmp_path_factory.mktemp("line")
    ck = imported(folder)
    make_run(folder / "run", ck, init_from=ck)
    return folder


@settings(max_examples=25, deadline=None)
@given(
    config=st.dictionaries(KEYS, JSON, max_size=3),
    sampling=SAMPLING,
    own=st.dictionaries(KEYS, JSON, max_size=3),
    in_config=st.booleans(),
)
def test_every_key_of_an_origin_comes_back(line, config, sampling, own, in_config):
    source, out = line / "source", line / "out"
    for folder in (source, line / "ck" / "hf"):
        made = read(source, "config.json")
        made = {k: v for k, v in made.items() if not k.startswith("mine_") and k not in GenerationConfig().to_dict()}
        # Old folders have no generation_config.json, and sampling settings in config.json.
        (folder / "config.json").write_text(json.dumps(made | config | (sampling if in_config else {})))
        (folder / "generation_config.json").unlink(missing_ok=True)
        if not in_config:
            (folder / "generation_config.json").write_text(json.dumps({"do_sample": True} | sampling | own))
    shutil.rmtree(out, ignore_errors=True)
    exported(find_checkpoint(line / "run"), out)
    assert config.items() <= read(out, "config.json").items()
    if in_config:
        theirs = GenerationConfig.from_pretrained(source, config_file_name="config.json", _from_model_config=True)
        assert sampling.items() <= theirs.to_dict().items()
        ours = GenerationConfig.from_pretrained(out).to_dict()
        assert sampling.items() <= ours.items()
    else:
        assert settings_of(out) == settings_of(source)
        assert ({"do_sample": True} | sampling | own).items() <= read(out, "generation_config.json").items()


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_is_no_token_id_is_refused(tmp_path):
    ck = imported(tmp_path, generation={"eos_token_id": "</s>"})
    with pytest.raises(ConvertError, match="eos_token_id is '</s>', not a token's id or a list of ids"):
        export_hf(ck, tmp_path / "out")


def test_settings_that_transformers_refuses_are_named(tmp_path):
    ck = imported(tmp_path, config={"cache_implementation": "none of them"})
    with pytest.raises(ConvertError, match=r"transformers refuses the generation settings in config\.json: "):
        export_hf(ck, tmp_path / "out")


def test_code_and_paths_stay_behind(tmp_path):
    names = {"auto_map": {"AutoModelForCausalLM": "own.Model"}, "quantization_config": {"bits": 4}}
    ck = imported(tmp_path, config=EXTRA | {"transformers_weights": "adapter_model.bin", "_commit_hash": "1"})
    change(ck / "hf" / "config.json", **names)
    change(ck / "hf" / "tokenizer_config.json", name_or_path="/home/me/x")
    out = exported(ck, tmp_path / "out")
    gone = {"auto_map", "quantization_config", "_name_or_path", "transformers_weights", "_commit_hash"}
    assert not gone & read(out, "config.json").keys()
    assert "/home" not in "".join(path.read_text() for path in out.glob("*config*.json"))


def test_a_tokenizers_code_stays_behind(tmp_path):
    source = write_folder(tmp_path / "source")
    change(source / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.Tok"]}, tokenizer_class="Tok")
    (tmp_path / "out").mkdir()
    copy_tokenizer(source, tmp_path / "out", vocab_size=VOCAB)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHATML  # without a question


def test_a_tokenizer_that_is_named_stands_in_for_a_damaged_one(tmp_path):
    ck = imported(tmp_path, config={"eos_token_id": 9})
    (ck / "hf" / "tokenizer.json").write_text("{}")
    with pytest.raises(ConvertError, match=r"tokenizer cannot be used: .*tokenizer\.json is no Hugging Face tokenizer"):
        export_hf(ck, tmp_path / "out")
    export_hf(ck, tmp_path / "out", tokenizer=tmp_path / "source")
    assert stops_of(tmp_path / "out") == [9, TEXT_END]


def test_templates_in_folders_of_their_own_come_along(tmp_path):
    source = write_folder(tmp_path / "source")
    more = source / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("{{ tools }}")
    (source / "chat_template.jinja").write_text(CHATML)
    import_hf(source, tmp_path / "ck", layout=Layout())
    out = exported(tmp_path / "ck", tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(source).chat_template
    assert AutoTokenizer.from_pretrained(out).chat_template == theirs
    assert set(theirs) == {"default", "tool_use"}


TEMPLATES = {
    "chatml": (CHATML, TURN_END),
    "eos": ("{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}{% endfor %}", TEXT_END),
    "words": ("{% for m in messages %}### {{ m.role }}: {{ m.content }}\n### end\n{% endfor %}", None),
    "nothing": ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
    "refuses": ("{{ raise_exception('no') }}", None),
    "none": (None, None),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_a_turn_is_the_last_control_token_of_a_template(tmp_path, name):
    template, end = TEMPLATES[name]
    folder = write_tokenizer(tmp_path / "tok", vocab_size=VOCAB, special=SPECIAL, eos="<|end|>", template=template)
    assert turn_end(folder) == end
    if end is not None:
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]
        ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, return_dict=False)
        assert end in ids[-2:]
