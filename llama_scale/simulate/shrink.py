"""Spec -> the spec of its simulation: the same degrees above 1, options and kinds; everything else small. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_scale.errors import LaunchError, Problem
from llama_scale.simulate import sizes
from llama_scale.simulate.changes import Change, compare
from llama_scale.spec.dump import dump_yaml
from llama_scale.spec.load import check_text
from llama_scale.spec.run import RunSpec
from llama_scale.spec.start import from_seed

STEPS = 10
SAVE_EVERY = 3
"""Steps between checkpoints: several are left to be killed in after the first is complete."""
_TIMEOUT_S = 60
_SEQUENCE = 64
_LOGITS = 2**24
"""Most tokens of a row x vocabulary where rows are texts: more would take minutes on two cores."""
_WIDTHS = (16, 32, 64, 128)
"""Head widths tried until the options of all plugins fit the model."""
_RANKS: Mapping[str, tuple[tuple[str, str | None], ...]] = {
    "lora": (("rank", "alpha"), ("ranks", "alphas")),
    "bottleneck": (("size", None),),
    "prefix": (("length", None),),
}
_ANY_ADAPTER: tuple[tuple[str, str | None], ...] = (("rank", "alpha"),)
_NETWORK = ("NCCL_", "UCX_", "GLOO_", "FI_", "CUDA_")
"""Beginnings of variables that speak of the cluster's devices."""

_REASONS: Mapping[str, str] = {
    "model.init_from": "drawn from the seed",
    "model.base_name": "drawn from the seed",
    "train.from": "drawn from the seed",
    "model.init_std": "narrow layers act as strongly as wide ones do, or a fault of one hardly shows",
    "model.vocab_size": "divided by its padding, or not, as before",
    "train.timeout_s": "a collective that hangs is told soon",
    "restart.max": "the simulation resumes by itself",
    "restart.hang_min_s": "a run that hangs is told soon",
    "checkpoint.every_steps": "there is something to resume from",
    "checkpoint.save_optimizer": "without it nothing can be resumed",
    "engine.overlap_p2p": "interleaving needs it at pipeline 2",
    "engine.offload_optimizer.device": "nvme needs CUDA",
    "engine.offload_parameters.device": "nvme needs CUDA",
    "engine.persistence_elements": "so that small weights are divided too",
    "cluster": "gloo on this machine",
    "launcher": "processes of this machine",
    "tracking.wandb": "nothing leaves this machine",
    "tracking.mlflow": "nothing leaves this machine",
    "data.split": "each split in use has documents",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInput:
    """What a task of the simulation reads.

    Args:
        options: Its options, files of the simulation named.
        least_seq: Shortest ``data.seq_length`` that the options allow.
        why: Where the rows come from.
    """

    options: Mapping[str, Any]
    least_seq: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the simulation reads instead of the spec's files.

    Args:
        blend: Token file prefixes, one a part of the blend.
        blend_why: Where each part's tokens come from.
        tokenizer: Section ``tokenizer``; None: the simulation has none.
        tokenizer_size: Its tokens; 0 without one.
        tokenizer_why: Why it is another one, or none.
        tokenizer_made: It is another one, whose texts are longer.
        tasks: One a task.
    """

    blend: Sequence[str] = ()
    blend_why: Sequence[str] = ()
    tokenizer: Mapping[str, Any] | None = None
    tokenizer_size: int = 0
    tokenizer_why: str = ""
    tokenizer_made: bool = False
    tasks: Sequence[TaskInput] = ()


def shrink(spec: RunSpec, inputs: Inputs) -> tuple[RunSpec, tuple[Change, ...]]:
    """Return the spec of the simulation, which validates, and what of the spec it changes.

    Args:
        spec: A resolved spec.
        inputs: The files that it reads.

    Raises:
        LaunchError: A plugin's options fit no small model.
    """
    before = spec.model_dump(mode="json", by_alias=True)
    seeded = from_seed(spec).model_dump(mode="json", by_alias=True)
    problems: tuple[Problem, ...] = ()
    for width in _WIDTHS:
        for small_options in (True, False):
            after = _Shrinking(seeded, inputs, width=width, small_options=small_options).run()
            loaded = check_text(dump_yaml(after), name="simulation", folder="/", env={})
            if loaded.spec is not None:
                found = loaded.spec.model_dump(mode="json", by_alias=True)
                return loaded.spec, compare(before, found, _reasons(inputs))
            problems = problems or loaded.problems
    told = "\n  ".join(f"{problem.dotted}: {problem.message}" for problem in problems)
    raise LaunchError(
        f"{spec.name} cannot be simulated: options do not fit a small model, with heads up to {_WIDTHS[-1]} wide:\n  "
        f"{told}\nmake them depend on the model's sizes, or try the spec itself for a few steps"
    )


def _reasons(inputs: Inputs) -> dict[str, str]:
    reasons = {**_REASONS, "tokenizer": inputs.tokenizer_why}
    reasons |= {f"data.blend[{number}]": why for number, why in enumerate(inputs.blend_why)}
    return reasons | {f"tasks[{number}].options": task.why for number, task in enumerate(inputs.tasks)}


class _Shrinking:
    """One try.

    Args:
        spec: The spec as plain data.
        inputs: The files that the simulation reads.
        width: Most that an attention head may be wide.
        small_options: Shrink ranks of adapters, and cut examples that are too long.
    """

    def __init__(self, spec: Mapping[str, Any], inputs: Inputs, *, width: int, small_options: bool) -> None:
        self.spec = spec
        self.inputs = inputs
        self.width = width
        self.small_options = small_options
        self.new = copy.deepcopy(dict(spec))

    def run(self) -> dict[str, Any]:
        """Return the small spec as plain data."""
        self._parallel()
        self._model()
        self._data()
        self._run()
        self._engine()
        self._machine()
        self._adapters()
        return self.new

    def _parallel(self) -> None:
        old, new = self.spec["parallel"], self.new["parallel"]
        for name in ("data", "tensor", "pipeline", "virtual_stages"):
            new[name] = sizes.degree(old[name])
        self.tensor = new["tensor"]
        self.layers, new["stage_layers"] = sizes.stages(
            self.spec["model"]["num_layers"],
            chunks=old["pipeline"] * old["virtual_stages"],
            small=new["pipeline"] * new["virtual_stages"],
            uneven=old["stage_layers"],
        )
        chunk = self.layers // (new["pipeline"] * new["virtual_stages"])
        recompute = self.new["recompute"]
        if recompute["kind"] == "full":
            smallest = min(new["stage_layers"] or [chunk])
            even = new["stage_layers"] is None or len(set(new["stage_layers"])) == 1
            whole = smallest if even or recompute["method"] == "block" else 1
            recompute["layers"] = min(recompute["layers"], 2, whole)
            if recompute["method"] == "uniform" and whole % recompute["layers"]:
                recompute["layers"] = 1

    def _model(self) -> None:
        old, new = self.spec["model"], self.new["model"]
        new |= sizes.widths(old, tensor=self.spec["parallel"]["tensor"], width=self.width)
        new["num_layers"] = self.layers
        new["init_std"] = max(old["init_std"], round(new["hidden_size"] ** -0.5, 4))
        new["vocab_size"], new["vocab_pad_multiple"] = sizes.vocabulary(
            old["vocab_size"],
            pad=old["vocab_pad_multiple"],
            tensor=self.spec["parallel"]["tensor"],
            least=self.inputs.tokenizer_size,
        )

    def _data(self) -> None:
        new = self.new["data"]
        self.new["tokenizer"] = None if self.inputs.tokenizer is None else dict(self.inputs.tokenizer)
        length = self._row_length() if new["kind"] == "tasks" else min(new["seq_length"], _SEQUENCE)
        cut = length < new["seq_length"] or self.inputs.tokenizer_made
        if self.new["parallel"]["sequence"] and length % self.tensor:
            length -= 1
        for task, known in zip(self.new["tasks"], self.inputs.tasks, strict=True):
            task["options"] = copy.deepcopy(dict(known.options))
            if self.small_options and cut and task["options"].get("overlong") == "error":
                task["options"]["overlong"] = "truncate_right"
        if new["kind"] == "indexed":
            for part, prefix in zip(new["blend"], self.inputs.blend, strict=True):
                part["path"] = prefix
            shares = {"train": 8.0, "validation": 1.0, "test": 1.0}
            new["split"] = {name: shares[name] if share else 0.0 for name, share in new["split"].items()}
        new["seq_length"] = length

    def _row_length(self) -> int:
        """Return the length of rows of texts: the spec's where two cores can bear it."""
        length: int = self.spec["data"]["seq_length"]
        vocabulary, positions = self.new["model"]["vocab_size"], self.spec["model"]["max_position_embeddings"]
        if self.inputs.tokenizer_made:
            length = min(max(length, 256), positions)  # bytes, where words were counted
        if length <= 512 and length * vocabulary <= _LOGITS:
            return length
        bearable = [size for size in (128, 256, 512) if size * vocabulary <= _LOGITS]
        least = max((task.least_seq for task in self.inputs.tasks), default=1)
        return min(length, max(bearable[-1] if bearable else 128, least))

    def _run(self) -> None:
        new, batch = self.new, self.new["batch"]
        batch["micro"], batch["accumulation"] = sizes.degree(batch["micro"]), sizes.degree(batch["accumulation"])
        batch["global"] = batch["micro"] * batch["accumulation"] * new["parallel"]["data"]
        new["train"] |= {"steps": STEPS, "epochs": None, "timeout_s": min(new["train"]["timeout_s"], _TIMEOUT_S)}
        schedule = new["schedule"]
        schedule["warmup_steps"] = min(schedule["warmup_steps"], 2)
        if "decay_steps" in schedule:
            schedule["decay_steps"] = min(schedule["decay_steps"], 3)
        new["checkpoint"] |= {"every_steps": SAVE_EVERY, "save_optimizer": True}
        if new["validation"] is not None:
            new["validation"] = {"every_steps": 4, "batches": min(new["validation"]["batches"], 2)}
        new["restart"] |= {"max": 0, "min_nodes": None, "hang_min_s": min(new["restart"]["hang_min_s"], _TIMEOUT_S)}

    def _engine(self) -> None:
        engine = self.new["engine"]
        if engine["kind"] == "megatron":
            engine["overlap_p2p"] = engine["overlap_p2p"] or self.new["parallel"]["virtual_stages"] > 1
        elif engine["kind"] == "ddp":
            engine["bucket_mb"] = 1
        else:
            engine["bucket_elements"] = min(engine["bucket_elements"], 1_000_000)
            engine["persistence_elements"] = min(engine["persistence_elements"], 100)
            for name in ("offload_optimizer", "offload_parameters"):
                if engine[name] is not None:
                    engine[name] = {"device": "cpu", "nvme_path": None, "pin_memory": False}

    def _machine(self) -> None:
        parallel = self.new["parallel"]
        world = parallel["data"] * parallel["tensor"] * parallel["pipeline"]
        self.new["cluster"] = {"nodes": 1, "devices_per_node": world, "device": "cpu"}
        kept = {
            name: value for name, value in self.spec["launcher"].get("env", {}).items() if not name.startswith(_NETWORK)
        }
        self.new["launcher"] = {"kind": "local", "threads_per_process": 1, "grace_s": 30.0, "env": kept}
        self.new["tracking"] |= {"log_every_steps": 1, "wandb": None, "mlflow": None}

    def _adapters(self) -> None:
        layers = self.spec["model"]["num_layers"]
        for adapter in self.new["adapters"]:
            options = adapter["options"]
            if "layers" in options:
                options["layers"] = sizes.layer_choice(options["layers"], layers=layers, small=self.layers)
            if self.small_options:
                for name, scale in _RANKS.get(adapter["kind"], _ANY_ADAPTER):
                    _shrink_rank(options, name, scale)


def _shrink_rank(options: dict[str, Any], name: str, scale: str | None) -> None:
    """Shrink a rank, or those of single targets, and what is divided by it."""
    value = options.get(name)
    if isinstance(value, dict):
        alphas = options.get(scale or "") or {}
        for target, size in value.items():
            if _is_count(size):
                value[target] = sizes.rank(size)
                if target in alphas:
                    alphas[target] *= value[target] / size
    elif value is not None and _is_count(value):
        options[name] = sizes.rank(value)
        if scale is not None and isinstance(options.get(scale), (int, float)):
            options[scale] = options[scale] * options[name] / value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
