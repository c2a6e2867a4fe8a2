"""validate, schema and init from the command line; what the root does with errors; what is never imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from llama_scale.cli.app import app
from llama_scale.cli.checking import find_files, github_annotation, run_plain
from llama_scale.errors import Problem
from llama_scale.spec.load import load_spec
from llama_scale.spec.presets import PRESETS
from llama_scale.spec.profile_names import profile_names
from tests.unit.spec.documents import document

HEAVY = ("torch", "numpy", "transformers", "deepspeed", "megatron", "rich")


def run(*words: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", "llama_scale", *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "good.yaml").write_text(json.dumps(document()), encoding="utf-8")
    (tmp_path / "sub" / "bad.yaml").write_text(json.dumps(document(tarin=1, seed="x")), encoding="utf-8")
    return tmp_path


def test_text_format_lists_good_files_on_stdout_and_problems_on_stderr(specs: Path) -> None:
    status, out, err = run("validate", f"{specs}/**/*.yaml")
    assert status == 3
    assert out.startswith(f"{specs}/good.yaml: ok: tinyllama-1.1b, megatron, 8 processes")
    assert "unknown key 'tarin'" in err
    assert "did you mean 'train'?" in err
    assert "2 errors in 1 file; 1 good" in err
    assert run("validate", f"{specs}/good.yaml")[0] == 0


@pytest.mark.parametrize("output", ["text", "json", "github"])
def test_plain_and_typer_paths_give_the_same(specs: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(specs / "good.yaml"), "--set", "seed=4", str(specs / "sub" / "bad.yaml"), f"--format={output}"]
    status = run_plain(words)
    plain = capsys.readouterr()
    result = CliRunner().invoke(app, ["validate", *words])
    assert (status, plain.out, plain.err) == (result.exit_code, result.stdout, result.stderr)


def test_options_that_typer_has_to_read_are_left_to_it() -> None:
    for words in ([], ["--help"], ["a", "--format", "xml"], ["a", "--set"], ["--", "-a"]):
        assert run_plain(words) is None


def test_json_format_is_a_list_of_problems(specs: Path) -> None:
    status, out, _ = run("validate", "--format", "json", str(specs / "sub" / "bad.yaml"))
    problems = json.loads(out)
    assert status == 3
    assert {"file", "line", "column", "path", "code", "message", "hint"} == set(problems[0])
    assert {problem["path"] for problem in problems} == {"tarin", "seed"}
    assert json.loads(run("validate", "--format", "json", str(specs / "good.yaml"))[1]) == []


def test_github_annotations_are_escaped() -> None:
    problem = Problem(path=("a",), message="100%\nx", hint="y: z", file="a,b:c.yaml", line=2, column=3)
    assert github_annotation(problem) == "::error file=a%2Cb%3Ac.yaml,line=2,col=3,title=a::100%25%0Ax%0Ay: z"


def test_glob_without_match_is_a_problem_and_literal_names_win(tmp_path: Path) -> None:
    (tmp_path / "a[1].yaml").write_text("x", encoding="utf-8")
    files, problems = find_files([f"{tmp_path}/a[1].yaml", f"{tmp_path}/*.yml"])
    assert files == [f"{tmp_path}/a[1].yaml"]
    assert [problem.message for problem in problems] == ["the glob matches no file"]


@pytest.mark.parametrize("words", [["--help"], ["validate", "GOOD"], ["validate", "BAD"], ["schema"]])
def test_light_commands_import_nothing_heavy(specs: Path, words: list[str]) -> None:
    places = {"GOOD": str(specs / "good.yaml"), "BAD": str(specs / "sub" / "bad.yaml")}
    code = (
        "import sys\nfrom llama_scale.cli.app import main\ntry: main()\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    argv = [sys.executable, "-c", code, *(places.get(word, word) for word in words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_unknown_command_suggests_and_exits_2() -> None:
    status, _, err = run("validat")
    assert status == 2
    assert "Did you mean 'validate'?" in err


def test_unexpected_errors_are_one_line_unless_debug(specs: Path) -> None:
    code = (
        "import sys, llama_scale.cli.checking as c\nfrom llama_scale.cli.app import main\n"
        "def broken(words): raise RuntimeError('odd\\nthing')\nc.run_plain = broken\nmain()"
    )
    env = {key: value for key, value in os.environ.items() if key != "LLAMA_SCALE_DEBUG"}
    argv = [sys.executable, "-c", code, "validate", "x"]
    plain = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
    assert plain.returncode == 1
    assert plain.stderr == "error: RuntimeError: odd thing (not expected; run with --debug to see where)\n"
    assert (
        "Traceback" in subprocess.run([*argv, "--debug"], capture_output=True, text=True, env=env, check=False).stderr
    )


def test_shell_completion_names_commands_without_importing_them() -> None:
    env = {**os.environ, "_LLAMA_SCALE_COMPLETE": "complete_bash", "COMP_WORDS": "llama-scale va", "COMP_CWORD": "1"}
    script = str(Path(sys.executable).with_name("llama-scale"))
    done = subprocess.run([script], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split() == ["validate"]


@pytest.mark.parametrize("profile", profile_names())
@pytest.mark.parametrize("model", ["smollm2-135m", "llama-3.1-8b", "llama-3.1-405b"])
def test_init_writes_a_spec_that_validates(tmp_path: Path, model: str, profile: str) -> None:
    path = tmp_path / "run.yaml"
    result = CliRunner().invoke(app, ["init", "--model", model, "--profile", profile, "--output", str(path)])
    assert result.exit_code == 0, result.stderr
    spec = load_spec(path)
    assert spec.cluster.profile == profile
    assert f"--model {model}" in path.read_text(encoding="utf-8").splitlines()[0]


def test_init_takes_a_profile_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = "title: our nodes\ndevice: cuda\ngpu: h100\ndevices_per_node: 4\nmemory_gb: 94\nenv: {NCCL_IB_HCA: mlx5_0}\n"
    Path("our site.yaml").write_text(own, encoding="utf-8")
    result = CliRunner().invoke(app, ["init", "--profile", "our site.yaml", "--launcher", "slurm", "-o", "run.yaml"])
    assert result.exit_code == 0, result.stderr
    spec = load_spec("run.yaml")
    assert spec.cluster.profile_file == f"{tmp_path}/our site.yaml" and spec.cluster.devices_per_node == 4
    assert spec.launcher.env == {"NCCL_IB_HCA": "mlx5_0"} and spec.name == "smollm2-135m-our-site"


@pytest.mark.parametrize("launcher", ["slurm", "mpi", "kubernetes", "ssh"])
def test_init_writes_a_spec_for_every_launcher(tmp_path: Path, launcher: str) -> None:
    path = tmp_path / "run.yaml"
    words = ["init", "--profile", "dgx-h100", "--launcher", launcher, "--nodes", "2", "-o", str(path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert load_spec(path).launcher.kind == launcher


def test_init_for_several_hosts_names_them_or_says_that_the_launcher_stays_here(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    words = ["init", "--model", "llama-3.1-70b", "--profile", "dgx-h100", "-o", str(path), "--force"]
    result = CliRunner().invoke(app, [*words, "--launcher", "deepspeed", "--nodes", "4"])
    assert result.exit_code == 0, result.stderr
    assert load_spec(path).launcher.hosts == ("host-0", "host-1", "host-2", "host-3")
    result = CliRunner().invoke(app, [*words, "--nodes", "4"])
    assert result.exit_code == 0
    assert "the local launcher starts processes on this machine only" in result.stderr
    assert "on 4 hosts, and `launch` needs a launcher that reaches them" in result.stderr
    assert load_spec(path).cluster.nodes == 4
    result = CliRunner().invoke(app, words)
    assert "does not fit 1 x NVIDIA DGX H100" in result.stderr
    assert "more --nodes" in result.stderr


def test_validate_reads_a_pipe_once(specs: Path) -> None:
    script = str(Path(sys.executable).with_name("llama-scale"))
    read, write = os.pipe()
    os.write(write, b"version: 1\nnmae: x\n")
    os.close(write)
    done = subprocess.run(
        [script, "validate", f"/dev/fd/{read}"], capture_output=True, text=True, pass_fds=[read], check=False
    )
    os.close(read)
    assert done.returncode == 3
    assert f"/dev/fd/{read}:2:1: nmae: unknown key" in done.stderr


def test_init_takes_a_hugging_face_folder_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    folder = tmp_path / 'a "b" model'
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 4, "vocab_size": 100}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    target = tmp_path / "run.yaml"
    runner = CliRunner()
    assert runner.invoke(app, ["init", "--model", str(folder), "-o", str(target)]).exit_code == 0
    assert load_spec(target).tokenizer is not None
    again = runner.invoke(app, ["init", "--model", str(folder), "-o", str(target)])
    assert "exists already" in str(again.exception)
    assert runner.invoke(app, ["init", "--model", str(folder), "-o", str(target), "--force"]).exit_code == 0
    for option, value in (("--model", "lama-2-7b"), ("--profile", "dgx"), ("--launcher", "slurn")):
        result = runner.invoke(app, ["init", option, value])
        assert result.exit_code == 2
        assert repr(value) in result.stderr
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert "no model_type" in str(runner.invoke(app, ["init", "--model", str(folder)]).exception)


def test_init_lists_every_preset_and_schema_prints_json() -> None:
    listing = CliRunner().invoke(app, ["init", "--list-models"]).stdout
    assert max(map(len, listing.splitlines())) <= 80
    assert all(name in listing for name in PRESETS)
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout)["$schema"].endswith("2020-12/schema")


def test_init_with_search_writes_the_layout_that_plan_ranks_first(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    words = ["--model", "llama-3.1-8b", "--profile", "dgx-h100"]

    result = CliRunner().invoke(app, ["init", *words, "--search", "-o", str(path)])

    assert result.exit_code == 0
    ranking = json.loads(CliRunner().invoke(app, ["plan", str(path), "--search", "--top", "1", "--json"]).stdout)
    spec, best = yaml.safe_load(path.read_text()), ranking["ranked"][0]
    assert spec["parallel"] == best["parallel"]
    assert spec["engine"] == best["engine"]
    assert spec["batch"] == best["batch"]
    assert "--search" in path.read_text().splitlines()[0]


def test_init_with_search_says_where_nothing_can_be_predicted() -> None:
    error = CliRunner().invoke(app, ["init", "--search"]).exception

    assert "profile 'laptop' has none" in str(error)
