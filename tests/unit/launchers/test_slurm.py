"""The bundle of launcher.kind: slurm, and what is said to sbatch; real jobs are in tests/cluster/test_slurm.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from llama_scale.errors import LaunchError
from llama_scale.launchers.slurm_queue import SlurmQueue, job_state, requeue
from llama_scale.runs.folder import write_files
from llama_scale.spec.load import load_spec
from tests.unit.launchers.bundles import HOSTILE, TWO_HOSTS, assert_golden, render, write_program

PLAIN = ("launcher={kind: slurm, time: '04:00:00', grace_s: 30}", *TWO_HOSTS)
SITE = (
    "launcher={kind: slurm, partition: gpu, account: proj-1, qos: high, time: 1-00:00:00, exclusive: true, "
    "options: {constraint: 'a&b', comment: 'it is', contiguous: ''}, requeue: false, chain: 3, "
    "threads_per_process: 4, forward: [WANDB_API_KEY], "
    "container: {kind: pyxis, image: nvcr.io/nvidia/pytorch:25.09-py3, python: /usr/bin/python3.12, "
    "mounts: ['/data:/data:ro']}}",
    *TWO_HOSTS,
    "cluster.device=cuda",
)
APPTAINER = (
    "launcher={kind: slurm, gres: '', cpus_per_node: 16, container: {kind: apptainer, image: /images/it's one.sif, "
    "mounts: [/data]}}",
    *TWO_HOSTS,
    "cluster.device=cuda",
)


@pytest.mark.parametrize(
    ("case", "overrides"), [("slurm", PLAIN), ("slurm-pyxis", SITE), ("slurm-apptainer", APPTAINER)]
)
def test_rendered_text_is_the_golden_one(tmp_path: Path, case: str, overrides: tuple[str, ...]) -> None:
    bundle = render(tmp_path, "slurm", *overrides)

    assert_golden(bundle, case, "job.sh", "launch.sh", "node.sh", "env", "forward")
    assert set(bundle.files) == {"spec.yaml", "plan.json", "job.sh", "launch.sh", "node.sh", "env", "forward"}


def test_same_spec_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = render(tmp_path, "slurm", *SITE)
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.chdir(tmp_path)
    assert render(tmp_path, "slurm", *SITE).files == first.files


def test_scripts_are_valid_bash(tmp_path: Path) -> None:
    for overrides in (PLAIN, SITE, APPTAINER):
        for name, text in render(tmp_path, "slurm", *overrides).files.items():
            if name.endswith(".sh"):
                subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_job_script_refuses_arrays_and_folders_that_are_no_runs(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(render(tmp_path / "spec", "slurm", *PLAIN, python="/bin/echo").files["job.sh"])

    array = subprocess.run(["bash", script, tmp_path], env={"SLURM_ARRAY_TASK_ID": "1"}, capture_output=True, text=True)
    nothing = subprocess.run(["bash", script, tmp_path / "x y"], capture_output=True, text=True)
    (tmp_path / "bundle").mkdir()
    good = subprocess.run(["bash", script, tmp_path], capture_output=True, text=True)

    assert array.returncode == 5 and "not as a job array" in array.stderr
    assert nothing.returncode == 5 and f"{tmp_path}/x y is no run folder" in nothing.stderr
    assert good.stdout == f"-P -m llama_scale.runs.slurm_job {tmp_path}\n"


def test_launch_script_outside_an_allocation_says_so(tmp_path: Path) -> None:
    write_files(tmp_path / "bundle", render(tmp_path / "spec", "slurm", *PLAIN).files)
    script = tmp_path / "bundle" / "launch.sh"
    done = subprocess.run(["bash", script, tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 5 and "not in a Slurm allocation" in done.stderr


def test_hostile_names_reach_the_agent_through_the_node_script(tmp_path: Path) -> None:
    here = tmp_path / HOSTILE.replace("/", "")
    python = write_program(here, "py thon", f"printf '%s\\0' \"$@\" > {tmp_path}/argv; env -0 > {tmp_path}/environ")
    launcher = json.dumps({"kind": "slurm", "env": {"HOSTILE": HOSTILE}})
    write_files(here / "bundle", render(tmp_path / "spec", "slurm", f"launcher={launcher}", python=str(python)).files)

    command = ["bash", here / "bundle" / "node.sh", here / "run", "host-0:20000"]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin", "SLURM_NODEID": "0"}, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    argv = (tmp_path / "argv").read_bytes().decode().split("\0")[:-1]
    assert argv[:5] == ["-P", "-m", "llama_scale.train.agent", "--run", str(here / "run")]
    variables = dict(pair.split("=", 1) for pair in (tmp_path / "environ").read_bytes().decode().split("\0") if pair)
    assert variables["HOSTILE"] == HOSTILE
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("words", [[], ["run"], ["", "host:1"]])
def test_node_script_needs_its_arguments_and_its_number(tmp_path: Path, words: list[str]) -> None:
    write_files(tmp_path / "bundle", render(tmp_path / "spec", "slurm", *PLAIN).files)
    script = tmp_path / "bundle" / "node.sh"
    assert subprocess.run(["bash", script, *words], capture_output=True).returncode == 2
    done = subprocess.run(["bash", script, "run", "h:1"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 5 and "nothing says which host this is; srun is to start it" in done.stderr


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that PATH begins with; programs in it write down their arguments."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "bin"


def _submit(tmp_path: Path, *overrides: str, **environment: str) -> tuple[str, ...]:
    bundle = render(tmp_path / "spec", "slurm", *overrides)
    write_files(tmp_path / "run" / "bundle", bundle.files)
    spec = load_spec(tmp_path / "run" / "bundle" / "spec.yaml")
    return SlurmQueue().submit(tmp_path / "run", bundle=tmp_path / "run" / "bundle", spec=spec, environment=environment)


def test_submission_passes_listed_variables_only_and_chains_jobs(tmp_path: Path, programs: Path) -> None:
    count = 'n=$(cat "$0.n" 2>/dev/null || echo 0); echo $((n + 1)) > "$0.n"; echo "$((n + 1));cluster"'
    write_program(programs, "sbatch", f'printf "%s\\n" "$@" --- >> "$0.argv"; env > "$0.env"; {count}')

    variables = {"PATH": "/usr/bin:/bin", "NCCL_X": "1", "WANDB_API_KEY": "k", "HF_TOKEN": "t", "SLURM_CONF": "/c"}
    jobs = _submit(tmp_path, *SITE, **variables)

    assert jobs == ("1", "2", "3")
    calls = (programs / "sbatch.argv").read_text().split("---\n")
    assert "--dependency" not in calls[0] and "--dependency=afterany:1\n" in calls[1]
    assert "--dependency=afterany:2\n" in calls[2]
    assert f"{tmp_path}/run/bundle/job.sh\n{tmp_path}/run\n" in calls[0]
    passed = {line.partition("=")[0] for line in (programs / "sbatch.env").read_text().splitlines()}
    assert passed - {"PWD", "SHLVL", "_"} == {"PATH", "NCCL_X", "WANDB_API_KEY", "SLURM_CONF"}


def test_chain_that_is_refused_halfway_leaves_nothing_queued(tmp_path: Path, programs: Path) -> None:
    refuse = '[[ $* == *afterany* ]] && { echo "sbatch: error: limit reached" >&2; exit 1; }; echo 41'
    write_program(programs, "sbatch", refuse)
    write_program(programs, "scancel", 'echo "$@" > "$0.argv"')

    with pytest.raises(LaunchError, match=r"sbatch refused: sbatch: error: limit reached"):
        _submit(tmp_path, *SITE, PATH="/usr/bin:/bin")

    assert (programs / "scancel.argv").read_text() == "41\n"


def test_missing_slurm_is_told(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(LaunchError, match=r"sbatch is not installed here: call llama-scale on a machine of the Slurm"):
        _submit(tmp_path, *PLAIN)
    view = SlurmQueue().look(["1"])
    assert view.phase == "unknown" and "scontrol is not installed here" in view.words
    with pytest.raises(LaunchError, match=r"scontrol is not installed"):
        requeue("1")


_SHOW = 'case $4 in 1) s="COMPLETED Reason=None";; 2) s="RUNNING Reason=None";; 3) s="PENDING Reason=Priority";; '
_SHOW += '*) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1;; esac; echo "JobId=$4 JobState=$s X=1"'


@pytest.mark.parametrize(
    ("jobs", "phase", "words"),
    [
        (["1", "2", "3"], "running", "Slurm job 2 is RUNNING"),
        (["1", "3"], "waiting", "Slurm job 3 is PENDING (Priority)"),
        (["1"], "ended", "Slurm job 1 ended as COMPLETED"),
        (["9", "1"], "ended", "Slurm job 1 ended as COMPLETED"),
        (["9"], "ended", "no longer known"),
    ],
)
def test_jobs_are_judged_together(programs: Path, jobs: list[str], phase: str, words: str) -> None:
    write_program(programs, "scontrol", _SHOW)
    view = SlurmQueue().look(jobs)
    assert view.phase == phase and words in view.words


def test_forgotten_jobs_are_looked_up_in_the_accounting(programs: Path) -> None:
    write_program(programs, "scontrol", _SHOW)
    write_program(programs, "sacct", "echo 'CANCELLED by 0'")
    assert job_state("9") == ("CANCELLED", "")


def test_only_waiting_jobs_of_a_chain_are_cancelled(programs: Path) -> None:
    write_program(programs, "scancel", 'echo "$@" >> "$0.argv"')
    SlurmQueue().cancel(["1", "2"], waiting_only=True)
    SlurmQueue().cancel([])
    assert (programs / "scancel.argv").read_text() == "--state=PENDING 1 2\n"
