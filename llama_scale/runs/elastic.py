"""Go on with fewer hosts: the spec and plan of a run for those that are left."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llama_scale.checkpoint.manifest import load_manifest, newest_complete
from llama_scale.errors import LaunchError
from llama_scale.launchers.base import load_launcher
from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.runs.doctor.ask import ask_hosts
from llama_scale.runs.doctor.records import Question
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.resume_plan import decide_resume
from llama_scale.runs.resume_spec import load_resumed
from llama_scale.spec.run import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """A run on fewer hosts.

    Args:
        spec: Its spec from now on.
        plan: Its plan.
        message: What changed, for people.
    """

    spec: RunSpec
    plan: RunPlan
    message: str


def hosts_of(spec: RunSpec) -> tuple[str, ...]:
    """Return the hosts that a spec names; none where a scheduler chooses them."""
    hosts: tuple[str, ...] = getattr(spec.launcher, "hosts", ())
    return hosts


def healthy_hosts(spec: RunSpec) -> list[str]:
    """Ask all hosts over ssh; return those that answer, in the spec's order."""
    launcher = spec.launcher
    timeout_s: float = getattr(launcher, "ssh_timeout_s", 20.0)
    questions = {host: Question() for host in hosts_of(spec)}
    answers = ask_hosts(questions, ssh_port=getattr(launcher, "ssh_port", None), timeout_s=timeout_s)
    return [host for host, answer in answers.items() if answer.facts is not None]


def choose_nodes(spec: RunSpec, *, healthy: int) -> tuple[int, int] | None:
    """Return the most hosts, and the data parallel degree on them, that the layout allows; None if none does.

    Tensor and pipeline degrees and the global batch stay: fewer replicas do more micro-batches each.

    Args:
        spec: The run's spec.
        healthy: Hosts that can be used.
    """
    replica = spec.parallel.tensor * spec.parallel.pipeline
    assert spec.batch.global_ is not None and spec.batch.micro is not None, "a run folder's spec is resolved"
    for nodes in range(min(healthy, spec.cluster.nodes), (spec.restart.min_nodes or spec.cluster.nodes) - 1, -1):
        replicas, rest = divmod(nodes * spec.cluster.devices_per_node, replica)
        if not rest and replicas and spec.batch.global_ % (spec.batch.micro * replicas) == 0:
            return nodes, replicas
    return None


def shrink(run: RunFolder, spec: RunSpec, *, healthy: Sequence[str]) -> Shrunk:
    """Remake a run's spec, plan and bundle for the hosts that are left; its checkpoint is divided anew when it loads.

    Raises:
        LaunchError: Too few are left, no layout fits them, or the checkpoint does not allow it.
        SpecError: A rule of the spec forbids it.
    """
    lost = [host for host in hosts_of(spec) if host not in healthy]
    chosen = choose_nodes(spec, healthy=len(healthy))
    if chosen is None:
        raise LaunchError(
            f"no answer from {', '.join(lost)}; {len(healthy)} hosts are left, and restart.min_nodes="
            f"{spec.restart.min_nodes} with parallel.tensor={spec.parallel.tensor}, parallel.pipeline="
            f"{spec.parallel.pipeline} and batch.global={spec.batch.global_} allow no run on them"
        )
    nodes, replicas = chosen
    changes = [f"launcher.hosts={json.dumps(list(healthy[:nodes]))}", f"cluster.nodes={nodes}"]
    new, _ = load_resumed(run.spec, overrides=[*changes, f"parallel.data={replicas}"])
    plan = make_plan(new)
    newest = newest_complete(run.checkpoints)
    manifest = load_manifest(newest) if newest else None
    decision = decide_resume(manifest, checkpoint=newest.name if newest else None, old=spec, new=new, plan=plan)
    if decision.kind == "refuse":
        raise LaunchError(f"no answer from {', '.join(lost)}, and the run cannot go on without: {decision.reasons[0]}")
    bundle = load_launcher(new.launcher.kind).render(new, plan, python=sys.executable)
    run.replace_bundle(bundle.files)
    message = f"no answer from {', '.join(lost)}: on {nodes} of {spec.cluster.nodes} hosts from here on"
    return Shrunk(spec=new, plan=plan, message=f"{message} ({'; '.join(decision.reasons)})")
