"""``llama-scale plan`` as its users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_scale.cli.app import app
from llama_scale.errors import ReportError, SpecError
from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.spec.load import load_spec
from tests.live_runs import environment, write_spec
from tests.terminals import run_in_terminal
from tests.unit.cli.calling import call

GOLDEN = Path(__file__).parent / "golden"
UPDATE = "LLAMA_SCALE_UPDATE_GOLDEN"
"""Environment variable: write the golden files anew instead of comparing with them."""

LAYOUTS = {
    "llama-3.1-8b": """
parallel: {data: 4, tensor: 2, pipeline: 1}
batch: {global: 128, micro: 1}
cluster: {nodes: 1, devices_per_node: 8}
""",
    "llama-3.1-70b": """
parallel: {data: 4, tensor: 8, pipeline: 4, virtual_stages: 5, sequence: true}
batch: {global: 512, micro: 1}
recompute: {kind: selective}
cluster: {nodes: 16, devices_per_node: 8}
""",
    "llama-3.1-405b": """
parallel:
  {data: 128, tensor: 8, pipeline: 16, sequence: true, stage_layers: [7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7]}
batch: {global: 2048, micro: 1}
recompute: {kind: full}
cluster: {nodes: 2048, devices_per_node: 8}
""",
}


def _write_spec(folder: Path, name: str = "llama-3.1-8b") -> Path:
    path = folder / "run.yaml"
    path.write_text(
        f"""version: 1
name: {name}
model: {{kind: preset, name: {name}}}
data: {{kind: indexed, blend: [{{path: tokens}}], seq_length: 8192}}
train: {{tokens: 1000000000000}}
engine: {{kind: megatron}}
{LAYOUTS[name]}"""
    )
    return path


def _run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llama_scale", "plan", *args],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_tables_are_the_golden_text(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(_write_spec(tmp_path, name))])

    assert result.exit_code == 0, result.output
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get(UPDATE):
        golden.write_text(result.stdout)
    assert result.stdout == golden.read_text()
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stdout.isascii()


def test_json_is_the_plan_with_what_follows_from_it(tmp_path: Path) -> None:
    path = _write_spec(tmp_path)

    result = CliRunner().invoke(app, ["plan", str(path), "--json"])

    document = json.loads(result.stdout)
    derived = document.pop("derived")
    assert RunPlan.from_json(json.dumps(document)) == make_plan(load_spec(path))
    assert derived["world_size"] == 8
    assert derived["model_parameters"] == 8_030_261_248
    assert derived["tokens_per_step"] == 128 * 8192
    assert derived["tokens"] >= 10**12 > derived["tokens"] - derived["tokens_per_step"]


def test_set_replaces_values(tmp_path: Path) -> None:
    args = ["plan", str(_write_spec(tmp_path)), "--json", "--set", "parallel.tensor=1", "--set", "parallel.pipeline=2"]

    result = CliRunner().invoke(app, args)

    topology = json.loads(result.stdout)["topology"]
    assert topology == {"dp_size": 4, "tp_size": 1, "pp_size": 2}


def test_bad_spec_exits_3_with_every_problem_and_no_data(tmp_path: Path) -> None:
    path = _write_spec(tmp_path)

    done = _run(str(path), "--set", "parallel.tensor=3", "--set", "parallel.pipeline=5")

    assert done.returncode == 3
    assert done.stdout == ""
    assert "tensor=3" in done.stderr
    assert "pipeline=5" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_file_exits_3(tmp_path: Path) -> None:
    done = _run(str(tmp_path / "none.yaml"))

    assert (done.returncode, done.stdout) == (3, "")
    assert "none.yaml" in done.stderr


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_terminal_is_coloured_unless_no_color(no_color: str, coloured: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llama_scale", "plan", str(_write_spec(tmp_path))]

    code, text = run_in_terminal(command, env=environment(NO_COLOR=no_color))

    assert code == 0, text
    assert (b"\x1b[" in text) is coloured
    assert b"8,030,261,248" in text


def test_help_names_the_options() -> None:
    result = CliRunner().invoke(app, ["plan", "--help"])

    assert result.exit_code == 0
    assert "--set" in result.stdout
    assert "--json" in result.stdout


@pytest.mark.parametrize("form", [(), ("--search", "--gpu", "h100")], ids=["plan", "search"])
@pytest.mark.parametrize("suffix", [".svg", ".PNG"])
def test_plot_writes_a_drawing_beside_the_answer(tmp_path: Path, form: tuple[str, ...], suffix: str) -> None:
    file = tmp_path / f"drawing{suffix}"

    done = CliRunner().invoke(app, ["plan", str(write_spec(tmp_path)), *form, "--plot", str(file)])

    assert done.exit_code == 0, done.output
    assert file.read_bytes().startswith(b"<?xml" if suffix == ".svg" else b"\x89PNG")
    assert list(tmp_path.glob(".*tmp")) == []


def test_tables_of_a_search_fit_80_columns(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(write_spec(tmp_path)), "--search", "--gpu", "h100", "--top", "1000"])

    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    layouts, _, reasons = done.stdout.partition("Why not these, against the first")
    assert layouts.count("\n| ") == reasons.count("\n| ") + 1  # the best needs no reason


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--usd-per-hour", "inf"), "Input should be less than or equal to 1000000"),
        (("--search", "--usd-per-hour", "2"), "--usd-per-hour is for the plan of one spec"),
        (("SPEC", "--diff", "--usd-per-hour", "2"), "--usd-per-hour is for the plan of one spec"),
    ],
)
def test_price_is_a_number_that_is_shown(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    spec = str(write_spec(tmp_path))

    done = CliRunner().invoke(app, ["plan", spec, *(spec if word == "SPEC" else word for word in arguments)])

    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_rows_of_measurements_take_no_values_of_a_spec(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plan", "--evaluate", str(tmp_path / "rows.csv"), "--set", "train.steps=1"])

    assert done.exit_code == 2
    assert "leave out --set, --gpu and --hardware" in " ".join(done.output.split())


def test_an_accelerator_without_a_name_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="'' is not a known accelerator; use a100"):
        call("plan", write_spec(tmp_path), "--gpu", "")


def test_plot_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    spec = str(write_spec(tmp_path))

    def refusal(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["plan", spec, *arguments])
        assert done.exit_code == 2
        return " ".join(done.output.split())

    assert "'x.pdf' ends in neither .svg nor .png" in refusal("--plot", "x.pdf")
    assert "--plot draws a plan or a search; --diff has no drawing" in refusal(spec, "--diff", "--plot", "x.svg")


def test_drawing_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "none" / "x.svg"

    with pytest.raises(ReportError, match=r"cannot write .*x\.svg: No such file or directory; choose another file"):
        call("plan", write_spec(tmp_path), "--plot", file)


def test_png_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)

    with pytest.raises(ReportError, match=r"pip install 'llama-scale\[plot\]', or name a file that ends in \.svg"):
        call("plan", write_spec(tmp_path), "--plot", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
