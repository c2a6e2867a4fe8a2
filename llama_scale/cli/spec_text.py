"""The commented spec that ``init`` writes, and the choice of a layout that fits the devices' memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from llama_scale.cli.recipes import Recipe
from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.length import any_length
from llama_scale.spec.load import check_text
from llama_scale.spec.model import ModelShape
from llama_scale.spec.profiles import Profile

MEMORY_SHARE = 0.9
"""Share of a device's memory that a plan may fill: the rest is for the CUDA context, NCCL and fragments."""
MAX_NODES = 1024


_TEMPLATE = """\
# Written by: {command}
# Next:  llama-scale validate FILE, llama-scale plan FILE, llama-scale launch FILE
version: 1
name: {name}

# {description}
model:
{model}
{tokenizer}
{data}
{train}
# global = micro x accumulation x data; any two are enough.
batch:
  micro: 1
  accumulation: {accumulation}

# data x tensor x pipeline = nodes x devices_per_node.
parallel:
  data: {replicas}
  tensor: {tensor}
  pipeline: {pipeline}
  sequence: {sequence}{stage_layers}

engine:
  kind: {engine}

{optimizer}precision:
  compute: {compute}
recompute: {{kind: {recompute}}}

{saving}
cluster:
  {profile}     # {title}
  nodes: {nodes}
  devices_per_node: {devices}
  device: {device}
launcher:
  kind: {launcher}
{hosts}{environment}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What ``init`` decides on.

    Args:
        name: Name of the run.
        command: The command line that wrote the spec.
        model: Lines of the section ``model``.
        tokenizer: Lines of the section ``tokenizer``.
        shape: The model's numbers.
        profile_line: The key of the cluster profile with its value.
        profile: Its figures.
        launcher: Kind of the launcher.
        engine: Kind of the engine.
        recipe: What is trained and how.
        nodes: Hosts.
        tensor: Tensor parallel degree.
        pipeline: Pipeline stages.
        recompute: Kind of recomputation.
    """

    name: str
    command: str
    model: str
    tokenizer: str
    shape: ModelShape
    profile_line: str
    profile: Profile
    launcher: str
    engine: str
    recipe: Recipe
    nodes: int = 1
    tensor: int = 1
    pipeline: int = 1
    recompute: str = "none"

    @property
    def data(self) -> int:
        """Data parallel replicas."""
        return self.nodes * self.profile.devices_per_node // (self.tensor * self.pipeline)


def choose_layout(choice: Choice, *, nodes: int | None) -> tuple[Choice, bool]:
    """Return the choice with the smallest model parallel layout that fits, and whether it does fit.

    Args:
        choice: Everything but the layout.
        nodes: Hosts; None takes the smallest power of two on which the model fits (1 for this machine's own launcher).
    """
    widest = choice
    counts = [nodes] if nodes else _powers_of_two(1 if choice.launcher == "local" else MAX_NODES)
    for count in counts:
        for candidate in _layouts(replace(choice, nodes=count)):
            if _fits(candidate):
                return candidate, True
            if candidate.recompute != widest.recompute or candidate.data < widest.data:
                widest = candidate
    return widest, False


def _powers_of_two(limit: int) -> list[int]:
    return [2**exponent for exponent in range(limit.bit_length()) if 2**exponent <= limit]


def _layouts(choice: Choice) -> Iterator[Choice]:
    """Yield layouts from the least to the most division; tensor parallelism stays inside a host."""
    shape, devices = choice.shape, choice.profile.devices_per_node
    world = choice.nodes * devices
    sizes = (shape.num_heads, shape.num_kv_heads, shape.ffn_hidden_size)
    tensors = [t for t in _powers_of_two(devices) if all(size % t == 0 for size in sizes)]
    pairs = [
        (tensor, pipeline)
        for tensor in tensors
        for pipeline in _powers_of_two(min(64, shape.num_layers))
        if world % (tensor * pipeline) == 0
    ]
    for recompute in ("none", "selective", "full"):
        for tensor, pipeline in sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[1])):
            yield replace(choice, tensor=tensor, pipeline=pipeline, recompute=recompute)


def _fits(choice: Choice) -> bool:
    loaded = check_text(render_spec(choice), name="spec", folder="/")
    if loaded.spec is None:
        return False
    limit = choice.profile.memory_gb * 1e9 * MEMORY_SHARE
    return max(stage.total for stage in make_plan(any_length(loaded.spec)).memory) <= limit


def render_spec(choice: Choice) -> str:
    """Return the spec's text."""
    cuda = choice.profile.device == "cuda"
    return _TEMPLATE.format(
        command=choice.command,
        name=choice.name,
        description=_describe(choice.shape),
        model=choice.model,
        tokenizer=choice.tokenizer,
        data=choice.recipe.data,
        train=choice.recipe.train,
        accumulation=_accumulation(choice, cuda=cuda),
        replicas=choice.data,
        tensor=choice.tensor,
        pipeline=choice.pipeline,
        sequence="true" if choice.tensor > 1 and choice.engine == "megatron" else "false",
        stage_layers=_stage_layers(choice),
        engine=_engine(choice, cuda=cuda),
        optimizer=choice.recipe.optimizer,
        saving=choice.recipe.saving,
        compute="bf16" if cuda else "fp32",
        recompute=choice.recompute,
        profile=choice.profile_line,
        title=choice.profile.title,
        nodes=choice.nodes,
        devices=choice.profile.devices_per_node,
        device=choice.profile.device,
        launcher=choice.launcher,
        hosts=_hosts(choice),
        environment=_environment(choice.profile),
    )


def _accumulation(choice: Choice, *, cuda: bool) -> int:
    if choice.recipe.rows_a_step is not None:
        return max(choice.pipeline, choice.recipe.rows_a_step // choice.data)
    return 4 * choice.pipeline if cuda or choice.pipeline > 1 else 2


def _engine(choice: Choice, *, cuda: bool) -> str:
    """Write the kind of the engine and its usual settings."""
    overlap = "true" if cuda and choice.data > 1 else "false"
    settings = {
        "megatron": f"\n  distributed_optimizer: true\n  overlap_grad_reduce: {overlap}",
        "deepspeed": "\n  zero: 1",
    }
    return choice.engine + settings.get(choice.engine, "")


def _describe(shape: ModelShape) -> str:
    return (
        f"{shape.num_layers} layers, hidden {shape.hidden_size}, {shape.num_heads} heads, {shape.num_kv_heads} "
        f"key/value heads, vocabulary {shape.vocab_size}"
    )


def _stage_layers(choice: Choice) -> str:
    layers, stages = choice.shape.num_layers, choice.pipeline
    base, extra = divmod(layers, stages)
    if not extra:
        return ""
    return f"\n  stage_layers: {[base + (index < extra) for index in range(stages)]}"


def _hosts(choice: Choice) -> str:
    """Write what a launcher has to know of the site, to be replaced."""
    if choice.launcher == "kubernetes":
        return (
            "  image: registry/llama-scale:1  # put your image here\n  claim: runs               # your shared volume\n"
        )
    if choice.launcher == "slurm":
        return "  time: 04:00:00          # and partition, account, ... of your site\n"
    if choice.launcher not in ("deepspeed", "mpi", "ssh") or (choice.nodes == 1 and choice.launcher != "ssh"):
        return ""
    names = "".join(f"    - host-{index}\n" for index in range(choice.nodes))
    return f"  hosts:                  # put your hosts' names here, or name a hostfile instead\n{names}"


def _environment(profile: Profile) -> str:
    """Write the site's variables into the spec, so that the run does not depend on the profile's later changes."""
    if not profile.env:
        return ""
    lines = [f"    {name}: {json.dumps(value)}" for name, value in profile.env.items()]
    return "  env:                    # of the profile\n" + "\n".join(lines) + "\n"
