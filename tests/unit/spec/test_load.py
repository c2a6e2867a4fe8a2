"""Reading files: places, YAML 1.2, bounds, --set, paths, secrets, and the way back to YAML."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from llama_scale.errors import SpecError
from llama_scale.spec.compose import compose
from llama_scale.spec.load import check_file, check_text, dump_spec, load_spec, spec_digest
from llama_scale.spec.overrides import parse_override
from tests.unit.spec.documents import INLINE, document

GOOD_TEXT = """\
version: 1
name: demo
model: {kind: preset, name: tinyllama-1.1b}
data:
  kind: indexed
  seq_length: 128
  blend:
    - {path: ../tokens/a, weight: 1e-4}
    - path: ${env:CORPUS}/b
train: {tokens: 1e4}
batch: {global: 8, micro: 2}
parallel: {data: 2, tensor: 2, pipeline: 2}
engine: {kind: megatron}
cluster: {devices_per_node: 8, device: cpu}
"""
ENV = {"CORPUS": "/corpus"}


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def lines(text: str, *overrides: str) -> list[str]:
    loaded = check_text(text, name="run.yaml", folder="/specs", overrides=overrides, env=ENV)
    return [str(problem) for problem in loaded.problems]


def test_resolved_spec_has_numbers_batch_steps_and_absolute_paths(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD_TEXT), env=ENV)
    assert spec.model.kind == "inline"
    assert (spec.model.hidden_size, spec.model.name) == (2048, "tinyllama-1.1b")
    assert (spec.batch.global_, spec.batch.micro, spec.batch.accumulation) == (8, 2, 2)
    assert (spec.train.steps, spec.train.tokens) == (10, None)  # ceil(10000 / (8 * 128))
    assert [part.path for part in spec.data.blend] == [str(tmp_path.parent / "tokens/a"), "/corpus/b"]
    assert spec.data.blend[0].weight == 1e-4


def test_dump_reads_back_to_an_equal_spec_with_the_same_digest(tmp_path: Path) -> None:
    words = ["no", "1e-4", "0o17", "null", "1:30", "- x", "a: b", " x", "", "2024-01-01", "#", "\u00e9\n", "*a", ".inf"]
    text = json.dumps(
        document(model=INLINE, launcher={"kind": "local", "env": {f"V{i}": w for i, w in enumerate(words)}})
    )
    spec = load_spec(write(tmp_path, text))
    again = load_spec(write(tmp_path, dump_spec(spec)))
    assert again == spec
    assert spec_digest(again) == spec_digest(spec)
    assert len(spec_digest(spec)) == 64
    assert spec_digest(load_spec(write(tmp_path, text), overrides=["seed=2"])) != spec_digest(spec)


def test_plain_scalars_follow_yaml_1_2() -> None:
    root = compose("[1e-4, no, on, 0o17, 1:30, 2024-01-01, .5, 0x1F, 012, ~, True, '1', 1_000]")
    assert root is not None
    assert root.data() == [1e-4, "no", "on", 15, "1:30", "2024-01-01", 0.5, 31, 12, None, True, "1", "1_000"]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a:\n\tb: 1", "2:1", "a tab character"),
        ("a: [1,", "1:7", "not closed"),
        ("a: b: c", "1:5", "needs quotes"),
        ("a: 1\nb: 2\na: 3", "3:1", "'a' occurs twice"),
        ("a: *y", "1:4", "no anchor &y"),
        ("a: &a [*a]", "1:8", "contains itself"),
        ("a: 1\n---\nb: 2", "2:1", "several YAML documents"),
        ("a: !!python/object:os.system x", "1:4", "tag"),
        ("1: x", "1:1", "is not text"),
        ("? [a]\n: b", "1:3", "key must be text"),
        ("a: .inf", "1:4", "not a number that a spec can use"),
        ("a: 1e999", "1:4", "larger than a float64"),
        ("a: " + "9" * 400, "1:4", "more than 300 digits"),
        ("{<<: 3}", "1:2", "merge key"),
        ('a: "\\0"', "1:4", "NUL"),
        ("a: \x07", "1:4", "U+0007"),
        ("[" * 500, "1:41", "more than 40 levels"),
        ("- a", "1:1", "a list of 1"),
        ("", "", "the file is empty"),
        ("# only a comment", "", "the file is empty"),
    ],
)
def test_text_that_is_no_spec_is_one_problem_with_a_place(text: str, place: str, message: str) -> None:
    (line,) = lines(text)
    assert line.startswith(f"run.yaml:{place}" if place else "run.yaml: ")
    assert message in line


def test_yaml_bomb_is_refused_before_it_takes_memory() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
    )
    (line,) = lines(bomb)
    assert "expand the document to more than 4 MiB" in line


def test_anchors_and_merge_keys_work_and_explicit_keys_win() -> None:
    root = compose("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a")
    assert root is not None
    assert root.data() == {"a": {"x": 1, "y": 2}, "b": {"y": 3, "x": 1}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"name: \xff", "1:7: is not UTF-8"),
        (b"a: 1\nb\x00", "2:2: holds a NUL"),
        (b"#" * 600_000, "larger than 512 KiB"),
    ],
)
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_spec(write(tmp_path, raw))


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        load_spec(tmp_path / "nothing.yaml")
    with pytest.raises(SpecError, match="is a folder"):
        load_spec(tmp_path)
    with pytest.raises(SpecError, match="NUL"):
        load_spec("a\0b")


def test_all_errors_come_at_once_with_places_and_suggestions() -> None:
    text = GOOD_TEXT.replace("tensor: 2", "tensro: 2").replace("kind: megatron", "kind: magatron")
    text = text.replace("tinyllama-1.1b", "tinylama-1.1b").replace("micro: 2", "micro: two") + "train: {}\n"
    assert "occurs twice" in lines(text)[0]
    found = lines(text.removesuffix("train: {}\n").replace("device: cpu", "device: cpu, profile: dgx-h10"))
    assert [line.split(": ")[0] for line in found] == [
        f"run.yaml:{p}" for p in ("3:29", "11:27", "12:21", "13:16", "14:54")
    ]
    for line, word in zip(found, ("tinyllama-1.1b", "not an integer", "tensor", "megatron", "dgx-h100"), strict=True):
        assert word in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("foo", "has no '='"),
        ("=3", "is not a field path"),
        ("a..b=3", "is not a field path"),
        ("[0]=3", "is not a field path"),
        ("data.blend[5].path=x", "index 5 is beyond the list's 2 items"),
        ("name.x=3", "name is not a mapping"),
        ("data.blend.0.path=x", "data.blend is not a mapping"),
        ("name=run #1", "'#1' would be left out"),
        ("name=#1", "'#1' would be left out"),
        ("name='run' # 1", "'# 1' would be left out"),
        ("name[0]=3", "name is not a list"),
        ("train.steps={", "not valid YAML"),
        ("train.steps=ten", "from --set train.steps=ten"),
        ("parallel.tesnor=2", "did you mean 'tensor'?"),
    ],
)
def test_problems_of_set_name_the_argument(override: str, message: str) -> None:
    found = lines(GOOD_TEXT, override)
    assert any(message in line and f"--set {override}" in line for line in found), found


def test_a_list_item_written_with_a_dot_gets_the_form_with_brackets() -> None:
    (problem,) = check_text(GOOD_TEXT, name="x", folder="/s", overrides=["data.blend.0.path=x"], env=ENV).problems
    assert problem.hint == "write data.blend[0] for an item of a list"


@pytest.mark.parametrize("value", ["a#b", '"a #b"', "'a #b'", "{b: 'a #b', c: [x, '#']}", "", "|-\n  a #b"])
def test_hash_signs_that_begin_no_comment_are_a_part_of_the_value(value: str) -> None:
    assert parse_override(f"k={value}").value.data() == yaml.safe_load(value)


def test_set_replaces_appends_and_creates_without_touching_aliases() -> None:
    text = GOOD_TEXT.replace("{tokens: 1e4}", "&t {steps: 5}") + "validation: {every_steps: 2}\n"
    overrides = [
        "data.blend[2]={path: c, weight: 3}",
        "train.steps=7",
        "tokenizer={kind: hf, path: t}",
        "validation=null",
    ]
    spec = check_text(text, name="x", folder="/s", overrides=overrides, env=ENV).spec
    assert spec is not None
    assert [part.path for part in spec.data.blend][2] == "/s/c"
    assert (spec.train.steps, spec.validation) == (7, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("${env:CORPUS}", "${env:NOPE}", "environment variable NOPE is not set"),
        ("${env:CORPUS}", "${env:}", "does not name an environment variable"),
        ("${env:CORPUS}", "${HOME}", "write ${env:NAME}"),
        ("${env:CORPUS}", "~", "write ${env:HOME}"),
        ("name: demo", "name: ${env:CORPUS}", "in path fields only"),
        ("name: demo", "name: hf_abcdefghijklmnopqrstuv", "looks like a Hugging Face token"),
    ],
)
def test_environment_and_secrets(old: str, new: str, message: str) -> None:
    found = lines(GOOD_TEXT.replace(old, new))
    assert any(message in line for line in found), found
    assert not any("hf_abc" in line for line in found)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("A", "sk-abcdefghijklmnop1234"), ("A", "AKIAABCDEFGHIJKLMNOP"), ("WANDB_API_KEY", "x"), ("password", "x"),
        ("A", "-----BEGIN RSA PRIVATE KEY-----"), ("WANDB_KEY_X", "0" * 40), ("A", "https://me:pw@host/x"),
    ],
)  # fmt: skip
def test_secret_values_are_refused_and_not_shown(key: str, value: str) -> None:
    text = GOOD_TEXT + f"launcher: {{kind: local, env: {{{key}: {json.dumps(value)}}}}}\n"
    found = lines(text)
    assert any("launcher.env" in line and "looks like" in line for line in found)
    assert value == "x" or not any(value in line for line in found)


def test_long_values_are_shown_cut_with_their_quotes_closed() -> None:
    (line,) = lines(GOOD_TEXT, f"name={'long ' * 30}x")
    value = f"'{'long ' * 11}...'"
    assert f"name: {value} is not a name (from --set name={value})" in line


def test_missing_keys_are_explained_and_flow_mappings_tell_how_to_quote() -> None:
    found = lines(GOOD_TEXT.replace("train: {tokens: 1e4}\n", "").replace("seq_length: 128", ""))
    assert any("'train' is missing; add it: Length of the training" in line for line in found), found
    assert any("'seq_length' is missing; add it: Tokens per sample" in line for line in found), found
    (line,) = lines(GOOD_TEXT.replace("{path: ../tokens/a", "{path: ${env:CORPUS}/a"))
    assert "needs quotes inside" in line


def test_check_file_returns_what_load_spec_raises(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD_TEXT.replace("steps", "stepz").replace("tokens: 1e4", "stepz: 3"))
    with pytest.raises(SpecError) as caught:
        load_spec(path, env=ENV)
    assert caught.value.problems == check_file(path, env=ENV).problems
    assert caught.value.exit_code == 3


def test_faults_of_the_text_itself_come_all_at_once() -> None:
    loaded = check_text("a: .inf\nb: !x 1\na: 2\n3: c\nd: .nan\ne: [", name="x.yaml")

    assert [(p.line, p.column) for p in loaded.problems[:5]] == [(1, 4), (2, 4), (3, 1), (4, 1), (5, 4)]
    assert [p.dotted for p in loaded.problems[:5]] == ["a", "b", "", "", "d"]
    assert "not valid YAML" in loaded.problems[5].message
    assert len(loaded.problems) == 6
    assert len(check_text("a: .inf\na: 2\n", name="x.yaml").problems) == 2
