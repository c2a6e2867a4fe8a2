"""A model's line is followed to its beginning: through runs, bases and symbolic links, moved and removed ones too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer

from llama_scale.convert.assemble import export_mixture
from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.folders import find_checkpoint, run_of
from llama_scale.convert.origin import keep_with, origin_of, origin_of_spec
from llama_scale.convert.reshard import reshard
from llama_scale.convert.shards import Layout
from llama_scale.spec.load import load_spec
from tests.task_tokenizer import CHATML
from tests.unit.convert.adapted import LORA, adapter_checkpoint, record
from tests.unit.convert.lines import (
    CHAT,
    GENERATION,
    TEXT_END,
    TURN_END,
    VOCAB,
    exported,
    imported,
    make_run,
    read,
    settings_of,
    stops_of,
)


def test_a_line_of_runs_is_followed_to_its_beginning(tmp_path):
    ck = imported(tmp_path, generation=GENERATION | {"eos_token_id": [9]})
    first = make_run(tmp_path / "first", ck, init_from=ck, tokenizer=tmp_path / "source", tasks=(CHAT,))
    second = make_run(tmp_path / "second", first, init_from=first)
    third = make_run(tmp_path / "third", second, init_from=tmp_path / "second")  # a run, as export takes it
    on_adapters = adapter_checkpoint(tmp_path / "adapters", base=third, extensions=record(LORA))
    export_mixture(on_adapters, tmp_path / "mixture")
    for folder in (exported(third, tmp_path / "hf"), tmp_path / "mixture"):
        assert stops_of(folder) == [9, TEXT_END, TURN_END]
        assert settings_of(folder) == settings_of(tmp_path / "source")
    assert load_spec(tmp_path / "third" / "spec.yaml").model.init_from == str(tmp_path / "second")


def test_a_run_keeps_what_came_with_its_start(tmp_path):
    ck = imported(tmp_path, generation=GENERATION | {"eos_token_id": [9]})
    first = make_run(tmp_path / "first", ck, init_from=ck, tokenizer=tmp_path / "source", tasks=(CHAT,))
    second = make_run(tmp_path / "second", first, init_from=first)
    keep_with(tmp_path / "second", made_of=first)
    before = (settings_of(tmp_path / "source"), read(tmp_path / "source", "tokenizer.json"))
    for folder in ("source", "ck", "first"):
        shutil.rmtree(tmp_path / folder)
    shutil.move(tmp_path / "second", tmp_path / "elsewhere")
    report = export_hf(find_checkpoint(tmp_path / "elsewhere"), tmp_path / "out")
    assert report["origin_missing"] is None
    assert stops_of(tmp_path / "out") == [9, TEXT_END, TURN_END]
    assert (settings_of(tmp_path / "out"), read(tmp_path / "out", "tokenizer.json")) == before
    assert second.name == "step-00000001"


def test_a_start_that_is_gone_is_named(tmp_path):
    ck = imported(tmp_path)
    run = make_run(tmp_path / "run", ck, init_from=ck)
    shutil.move(ck, tmp_path / "moved")
    report = export_hf(run, tmp_path / "out")
    assert report["origin_missing"] == str(ck)
    (tmp_path / "moved" / "manifest.json").write_text("{}")
    shutil.move(tmp_path / "moved", ck)
    assert str(origin_of(run).missing).startswith(f"{ck} (")


def test_a_damaged_spec_of_a_start_hides_no_more_than_its_own_tokenizer(tmp_path):
    ck = imported(tmp_path, generation=GENERATION | {"eos_token_id": [9]})
    first = make_run(tmp_path / "first", ck, init_from=ck, tokenizer=tmp_path / "source", tasks=(CHAT,))
    keep_with(tmp_path / "first", made_of=ck)
    second = make_run(tmp_path / "second", first, init_from=first)
    (tmp_path / "first" / "spec.yaml").write_text("version: 2\n")
    report = export_hf(second, tmp_path / "out")
    assert report["origin_missing"].startswith(f"{tmp_path}/first/spec.yaml (")
    assert stops_of(tmp_path / "out") == [9, TEXT_END, TURN_END]
    assert settings_of(tmp_path / "out") == settings_of(tmp_path / "source")


def test_a_run_that_started_from_itself_ends(tmp_path):
    ck = imported(tmp_path)
    run = make_run(tmp_path / "run", ck, init_from=tmp_path / "run")
    assert "it was made of itself" in str(origin_of(run).missing)


def test_a_hugging_face_folder_may_be_the_start(tmp_path):
    ck = imported(tmp_path, generation=GENERATION | {"eos_token_id": [9]})
    run = make_run(tmp_path / "run", ck, init_from=tmp_path / "source")
    assert stops_of(exported(run, tmp_path / "out")) == [9, TEXT_END]
    found = origin_of_spec(load_spec(tmp_path / "run" / "spec.yaml"))
    assert (found.stop_ids, found.generation_config) == ((9, TEXT_END), GENERATION | {"eos_token_id": [9]})


def test_a_checkpoint_that_left_its_run_knows_its_start(tmp_path):
    ck = imported(tmp_path, generation=GENERATION | {"eos_token_id": [9]})
    run = make_run(tmp_path / "run", ck, init_from=ck, tokenizer=tmp_path / "source", tasks=(CHAT,))
    shutil.move(run, tmp_path / "alone")
    shutil.rmtree(tmp_path / "run")
    manifest = read(tmp_path / "alone", "manifest.json")
    manifest["started_from"] = {"kind": "folder", "name": "mine", "path": str(tmp_path / "source"), "digest": "0" * 64}
    (tmp_path / "alone" / "manifest.json").write_text(json.dumps(manifest))
    out = exported(tmp_path / "alone", tmp_path / "out")
    assert stops_of(out) == [9, TEXT_END, TURN_END]
    assert settings_of(out) == settings_of(tmp_path / "source")


def test_a_resharded_checkpoint_has_what_came_with_the_run(tmp_path):
    ck = imported(tmp_path, generation=GENERATION | {"eos_token_id": [9]})
    run = make_run(tmp_path / "run", ck, init_from=ck, tokenizer=tmp_path / "source", tasks=(CHAT,))
    reshard(run, tmp_path / "cut", layout=Layout(pp_size=2))
    shutil.rmtree(ck)
    shutil.rmtree(tmp_path / "run")
    out = exported(tmp_path / "cut", tmp_path / "out")
    assert stops_of(out) == [9, TEXT_END, TURN_END]
    assert settings_of(out) == settings_of(tmp_path / "source")
    assert AutoTokenizer.from_pretrained(out).chat_template == CHATML


def links(tmp_path: Path, how: str, run: Path) -> Path:
    """Put symbolic links into a run and return what a user names."""
    kept, step = run / "checkpoints", "step-00000001"
    if how == "the run":
        run.rename(tmp_path / "scratch")
        run.symlink_to(tmp_path / "scratch")
        return run
    if how == "a checkpoint":
        (kept / step).rename(tmp_path / "scratch")
        (kept / step).symlink_to(tmp_path / "scratch")
        return kept / step
    kept.rename(tmp_path / "scratch")
    kept.symlink_to(tmp_path / "scratch")
    if how == "checkpoints, twice":
        (tmp_path / "best").symlink_to(kept / step)
        return tmp_path / "best"
    if how == "checkpoints, by a link to them":
        (tmp_path / "mine").symlink_to(kept)
        return tmp_path / "mine" / step
    return run if how == "checkpoints" else kept / step


@pytest.mark.parametrize(
    "how",
    ["checkpoints", "checkpoints and step", "checkpoints, twice", "checkpoints, by a link to them", "a checkpoint",
     "the run"],
)  # fmt: skip
def test_links_lead_back_to_the_run(tmp_path, how):
    ck = imported(tmp_path)
    shutil.copytree(tmp_path / "source", tmp_path / "tokenizer")
    make_run(tmp_path / "run", ck, tokenizer=tmp_path / "tokenizer")
    checkpoint = find_checkpoint(links(tmp_path, how, tmp_path / "run"))
    report = export_hf(checkpoint, tmp_path / "out")
    assert report["tokenizer"] == str(tmp_path / "tokenizer")
    assert stops_of(tmp_path / "out") == [TEXT_END]


def test_a_loop_of_links_is_no_run(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert run_of(tmp_path / "a" / "step-00000001") is None


def test_a_run_keeps_a_sentencepiece_model_and_its_template(tmp_path):
    """As it is: an export makes tokenizer.json of it, and of its settings only the template is read."""
    ck = imported(tmp_path, generation=GENERATION)
    for kept in (ck / "hf").iterdir():
        kept.unlink()
    model = tmp_path / "tokenizer" / "mine.model"
    model.parent.mkdir()
    text = tmp_path / "text"
    text.write_text(Path(__file__).read_text())
    SentencePieceTrainer.train(
        input=str(text), model_prefix=str(model.with_suffix("")), vocab_size=VOCAB, model_type="bpe", minloglevel=9
    )
    (model.parent / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    first = make_run(tmp_path / "first", ck, tokenizer=model)
    second = make_run(tmp_path / "second", first, init_from=first)
    keep_with(tmp_path / "second", made_of=first)
    out = exported(first, tmp_path / "out")
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(model.parent)
    again = exported(second, tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer.model", "chat_template.jinja", "config.json", "generation_config.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes(), name
    assert AutoTokenizer.from_pretrained(again).chat_template.endswith("</s>{% endfor %}")
    assert stops_of(again) == [2]
