"""The suite for adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from llama_scale.checkpoint.manifest import newest_complete
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.extensions import discover
from llama_scale.extensions.adapter import LayerAdapter
from llama_scale.extensions.api import AdapterDescriptor
from llama_scale.extensions.conformance import CheckRequest
from llama_scale.layout.boxes import Box
from llama_scale.spec.added import Added, added_by
from llama_scale.train.conformance import adapter_ranks as ranks
from llama_scale.train.conformance import light
from llama_scale.train.conformance.exports import export_difference
from llama_scale.train.conformance.ranks import on_ranks
from llama_scale.train.conformance.report import Failed, NotApplicable, Report
from llama_scale.train.conformance.tiny import Tiny, worst

STEPS, SAVED = 5, 2
LOSS, NORM, WEIGHTS, LOGITS = 1e-5, 5e-5, 1e-3, 1e-4
"""Relative tolerances of losses, gradient norms and logits, and of how far weights moved. A gradient that is summed
once too often or too seldom shows in its norm: Adam hides it from the weights."""


def check(report: Report, request: CheckRequest, folder: Path) -> None:
    """Make all checks of one adapter."""
    descriptor = discover.adapter(request.name)
    report.check("light descriptor", partial(light.descriptor_is_light, request))
    report.check("implementation", partial(light.implementation_of, request, descriptor, LayerAdapter))
    allowed = ("torch", "llama_scale.extensions.adapter")
    report.check("imports of the implementation", partial(light.imports_only, descriptor, allowed))
    added = report.check("options and parameters", partial(_parameters, request))
    if added is not None:
        suite = _Suite(request, descriptor, added, folder)
        if report.check("shapes", suite.shapes) is not None:
            suite.run(report)


def _parameters(request: CheckRequest) -> list[Added]:
    use = light.use_of(request, "adapters")
    shape = Tiny().plan().shape
    added: list[Added] = light.same_twice(lambda: added_by(use, shape, adapters=1))
    if not added:
        raise Failed("it adds no parameter to any layer")
    if not any(parameter.trainable for parameter in added):
        raise Failed("none of its parameters trains")
    return added


class _Suite:
    """The checks that need a model.

    Args:
        request: The plugin and its options.
        descriptor: Its descriptor.
        added: What it adds.
        folder: Room for checkpoints.
    """

    def __init__(
        self, request: CheckRequest, descriptor: AdapterDescriptor, added: Sequence[Added], folder: Path
    ) -> None:
        section = {"name": "probe", "kind": request.name, "options": dict(request.options)}
        self.tiny = Tiny(sections={"adapters": (section,)})
        self.descriptor = descriptor
        self.options = discover.read_options(descriptor, request.options)
        self.names = {f"decoder.layers.{a.layer}.adapters.probe.{a.short_name}": a.trainable for a in added}
        self.added = added
        self.folder = folder
        self.single: ranks.Trained | None = None

    def shapes(self) -> str:
        """See ``adapter_ranks.shapes``."""
        text: str = on_ranks(1, ranks.shapes, self.tiny)[0]
        return text

    def run(self, report: Report) -> None:
        """Make the checks, each as far as what it builds on holds."""
        report.check("identity at initialisation", self.identity)
        report.check("trains what it declares, nothing else", self.trains)
        if self.single is not None:
            report.check("tensor parallel 2 equals 1", partial(self.layout, replace(self.tiny, tp=2)))
            sequence = replace(self.tiny, tp=2, sequence=True)
            report.check("sequence parallel equals one process", partial(self.layout, sequence))
            report.check("pipeline parallel 2 equals 1", partial(self.layout, replace(self.tiny, pp=2)))
            report.check("saves what trains, resumes on another layout", self.resumes)
            report.check("exported to Hugging Face, with its modelling file", partial(self.exports, "mixture"))
            report.check("exported to PEFT", partial(self.exports, "peft"))
        report.check("fp32 adapter over a bf16 base", self.mixed_precision)
        report.check("merged equals unmerged", self.merges)

    def identity(self) -> str:
        """A fresh adapter must change nothing, or say why it does."""
        reason = self.descriptor.changes_at_start
        if reason is not None:
            raise NotApplicable(reason)
        return _near(*on_ranks(1, ranks.start_difference, self.tiny, self._bare)[0], what="a fresh adapter changes")

    def trains(self) -> str:
        """Every trainable parameter moves within a few steps; the base and the constants stay."""
        single: ranks.Trained = on_ranks(1, ranks.train, self.tiny, STEPS, SAVED, self.folder, False)[0]
        declared = {name for name, trainable in self.names.items() if trainable}
        if moved := sorted(single.moved - declared):
            raise Failed(f"{moved[0]} changed in training ({len(moved)} in all), and is not declared as trainable")
        if still := sorted(declared - single.moved):
            raise Failed(f"{still[0]} got no gradient in {STEPS} steps ({len(still)} such parameters)")
        if single.dtypes != {"float32"}:
            raise Failed(f"its parameters are {', '.join(sorted(single.dtypes))}; they have to stay fp32")
        self.single = single
        return f"{len(declared)} parameters, loss {single.losses[0]:.4f} to {single.losses[-1]:.4f}"

    def layout(self, tiny: Tiny) -> str:
        """Losses, gradient norms and weights on another layout are those of one process."""
        assert self.single is not None
        self._check_divides(tiny)
        found: list[ranks.Trained] = on_ranks(tiny.world, ranks.train, tiny, STEPS, None, None, False)
        return _same(found, self.single)

    def resumes(self) -> str:
        """A checkpoint holds what trains, and training goes on from it on two tensor parallel ranks."""
        assert self.single is not None
        tiny = replace(self.tiny, tp=2)
        self._check_divides(tiny)
        checkpoint = newest_complete(self.folder)
        if checkpoint is None:
            raise Failed("nothing was saved")
        stored = set(CheckpointReader(checkpoint).tensors("model"))
        declared = {name for name, trainable in self.names.items() if trainable}
        if stored != declared:
            raise Failed(f"the checkpoint holds {len(stored)} tensors, and {len(declared)} parameters train")
        found: list[ranks.Trained] = on_ranks(2, ranks.train, tiny, STEPS, None, self.folder, True)
        same_curve(found[0].losses, self.single.losses[SAVED:], "loss", LOSS)
        return f"{len(stored)} tensors"

    def exports(self, form: str) -> str:
        """The exported checkpoint gives the logits of the model that trained."""
        assert self.single is not None and self.single.saved_logits is not None
        if form == "peft" and self.descriptor.peft is None:
            raise NotApplicable("it names no PEFT format, and is exported with its modelling file")
        if form == "peft" and find_spec("peft") is None:
            raise NotApplicable("peft is not installed here")
        checkpoint = newest_complete(self.folder)
        assert checkpoint is not None, "a check before this one says so"
        expected = self.single.saved_logits
        [difference] = on_ranks(1, export_difference, checkpoint, self.folder, self.tiny, expected, form)
        return _near(difference, float(expected.abs().max()), what="the export changes", share=LOGITS)

    def mixed_precision(self) -> str:
        """In a bf16 run the adapter stays fp32 and learns."""
        tiny = replace(self.tiny, compute="bf16")
        found: ranks.Trained = on_ranks(1, ranks.train, tiny, 2, None, None, False)[0]
        if found.dtypes != {"float32"}:
            raise Failed(f"its parameters are {', '.join(sorted(found.dtypes))}; they have to stay fp32")
        return f"loss {found.losses[0]:.4f} to {found.losses[-1]:.4f}"

    def merges(self) -> str:
        """Logits with the adapter added into the base's matrices are those with the adapter beside them."""
        reason = self.descriptor.not_mergeable(self.options)
        if reason is not None:
            raise NotApplicable(reason)
        return _near(
            *on_ranks(1, ranks.merge_difference, self.tiny, self._bare, STEPS)[0], what="merging changes", share=LOGITS
        )

    @property
    def _bare(self) -> Tiny:
        return replace(self.tiny, sections={})

    def _check_divides(self, tiny: Tiny) -> None:
        for parameter in self.added:
            dim = parameter.tp_dim
            if dim is not None and parameter.shape[dim] % tiny.tp:
                raise Failed(
                    f"{parameter.short_name}, {list(parameter.shape)}, is cut along dim {dim}, which {tiny.tp} does "
                    "not divide; check it with options that give an even size"
                )


def _near(difference: float, size: float, *, what: str, share: float = 1e-5) -> str:
    if not difference <= share * size:
        raise Failed(f"{what} logits by {difference:.2e}, and they are up to {size:.2e}; {share:g} of that is allowed")
    return f"largest difference of logits {difference:.1e} of {size:.1e}"


def _same(found: Sequence[ranks.Trained], expected: ranks.Trained) -> str:
    for one in found:
        same_curve(one.losses, expected.losses, "loss", LOSS)
        same_curve(one.norms, expected.norms, "gradient norm", NORM)
    largest = max(_largest_difference(one, expected) for one in found)
    missing = {name for name, _ in expected.parts} - {name for one in found for name, _ in one.parts}
    if missing:
        raise Failed(f"no rank holds {min(missing)}")
    return f"loss within {worst(found[0].losses, expected.losses):.1e}, weights within {largest:.1e} of their change"


def _largest_difference(found: ranks.Trained, expected: ranks.Trained) -> float:
    whole = {name: tensor for (name, _), (_, tensor) in expected.parts.items()}
    change = {name: tensor for (name, _), (_, tensor) in expected.change.items()}
    largest = 0.0
    for (name, _), (box, tensor) in found.parts.items():
        if not tensor.numel():
            continue
        here = box.slices_within(Box.whole(tuple(whole[name].shape)))
        difference = float((tensor - whole[name][here]).norm() / change[name][here].norm().clamp_min(1e-12))
        if not difference <= WEIGHTS:
            raise Failed(f"{name} differs by {difference:.1e} of its change in {STEPS} steps ({WEIGHTS:g} is allowed)")
        largest = max(largest, difference)
    return largest


def same_curve(found: Sequence[float], expected: Sequence[float], what: str, share: float) -> None:
    """Compare two curves step by step.

    Raises:
        Failed: A step differs by more than ``share`` of what is expected.
    """
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not abs(one - other) <= share * abs(other):
            hint = (
                " (is it in every rank's gradient once, and marked partial_gradient where it is not?)" if step else ""
            )
            raise Failed(f"{what} {one:.7g} instead of {other:.7g} at step {step + 1}; {share:g} is allowed{hint}")
