"""The convert and generate commands: options, messages and what they print; the work itself is tested elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from llama_scale.cli.convert import app, parse_size
from llama_scale.cli.generate import app as generate_app
from llama_scale.errors import ConvertError, LaunchError
from tests.unit.convert.tiny import Tiny


@pytest.mark.parametrize(
    ("text", "size"),
    [("500MB", 500_000_000), ("1.5 GB", 1_500_000_000), ("2GiB", 2 << 30), ("1000", 1000), ("4k", 4000)],
)
def test_sizes(text, size):
    assert parse_size(text, option="--x") == size


@pytest.mark.parametrize("text", ["", "0", "-1MB", "many", "5XB", "1e9"])
def test_sizes_that_are_none(text):
    with pytest.raises(ConvertError, match=r"--shard-size .* is no size; write e\.g\. 500MB"):
        parse_size(text, option="--shard-size")


def fails(arguments: list[str], message: str, *, command: object = app) -> None:
    done = CliRunner().invoke(command, arguments)
    assert isinstance(done.exception, ConvertError | LaunchError), done.output
    assert message in str(done.exception)


def test_options_are_checked(tmp_path):
    paths = ["--from", str(tmp_path / "a"), "--to", str(tmp_path / "b")]
    fails(["import", *paths, "--dtype", "fp16"], "--dtype 'fp16' is not known; use fp32 or bf16")
    fails(["import", *paths, "--stage-layers", "1,x"], "--stage-layers '1,x' is no list of numbers")
    fails(["import", *paths, "--max-ram", "lots"], "--max-ram 'lots' is no size")
    fails(["import", *paths, "--virtual", "2"], "--virtual 2 cuts the chunks of pipeline stages")
    fails(["import", *paths, "--peft", "x"], "--peft is given without --base CHECKPOINT")
    fails(["import", *paths, "--peft", "x", "--base", "y"], "--peft and --base go with --to alone")
    fails(["export", *paths], "a does not exist; give the path of a run folder")
    fails(["reshard", *paths], "a does not exist")
    fails(["verify", "--from", str(tmp_path / "a"), "--hf", str(tmp_path)], "a does not exist")


def test_import_export_and_reshard_print_data(tmp_path):
    hf = Tiny().write(tmp_path / "hf")
    runner = CliRunner()
    to = ["--from", str(hf), "--to", str(tmp_path / "ck"), "--tensor", "2", "--pipeline", "2"]
    done = runner.invoke(app, ["import", *to, "--stage-layers", "4,2", "--no-verify", "--json"])
    assert done.exit_code == 0, done.output
    imported = json.loads(done.stdout)
    assert imported["parameters"] == sum(t.numel() for t in Tiny().tensors().values())
    assert imported["shards"] == 4
    assert imported["verify"] is None
    done = runner.invoke(app, ["reshard", "--from", str(tmp_path / "ck"), "--to", str(tmp_path / "new"), "--json"])
    assert json.loads(done.stdout)["parameter_digest"] == imported["parameter_digest"]
    done = runner.invoke(
        app, ["export", "--from", str(tmp_path / "new"), "--to", str(tmp_path / "out"), "--no-verify", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["verify"] is None
    assert "has no tokenizer" in done.stderr


def test_generate_refuses_what_it_cannot_use(tmp_path):
    hf = Tiny().write(tmp_path / "hf")
    model = [str(hf), "--prompt", "a"]
    fails([str(hf)], "no prompt is given; use --prompt TEXT", command=generate_app)
    fails([*model, "--prompts-file", str(tmp_path / "x")], "x cannot be read", command=generate_app)
    fails([*model, "--top-p", "0"], "--top-p 0 leaves no token to choose from", command=generate_app)
    fails(model, "has no tokenizer; export it with `--tokenizer PATH`", command=generate_app)
    fails([str(tmp_path / "x"), "-p", "a"], "no run in runs is called", command=generate_app)
    fails([str(tmp_path), "-p", "a"], "is neither a run, nor a checkpoint (manifest.json), nor a", command=generate_app)
    fails([*model, "--step", "3"], "--step chooses a checkpoint of a run", command=generate_app)
    (hf / "tokenizer.json").write_text("{")
    fails(model, "is no Hugging Face tokenizer, or is damaged", command=generate_app)


def test_light_install_is_told_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    message = "needs torch, not installed here: pip install 'llama-scale[train]'"
    fails([str(tmp_path), "-p", "a"], message, command=generate_app)
    fails(["export", "--from", str(tmp_path), "--to", str(tmp_path / "x")], message)


def test_help_loads_no_heavy_library():
    code = (
        "import sys; from llama_scale.cli.app import main\n"
        "for words in (['convert', '--help'], ['convert', 'import', '--help'], ['generate', '--help']):\n"
        "    sys.argv = ['llama-scale', *words]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "print([m for m in ('torch', 'numpy', 'transformers', 'safetensors', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
