"""The outcome of a verification: what was compared, how far apart it is, and what that means."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from llama_scale.errors import ConvertError

TOLERANCE = 1e-4
"""Most difference of two logits, relative to the largest logit: fp32 rounding over the layers stays below 1e-5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Compare the two models on one prompt.

    Args:
        prompt: ``random`` or the text.
        tokens: Its length.
        max_abs_diff: Largest difference of two logits.
        scale: Largest logit of transformers' model.
        relative: Their ratio; not finite if a logit is not.
        same_argmax: Share of positions with the same most likely token.
        generated: Greedy tokens that both models added, or None if none were asked for.
        generated_equal: How many of them agree before the first that differs.
    """

    prompt: str
    tokens: int
    max_abs_diff: float
    scale: float
    relative: float
    same_argmax: float
    generated: int | None
    generated_equal: int | None

    @property
    def passed(self) -> bool:
        """Whether logits and continuations agree; False for anything that is not a number."""
        return self.relative <= TOLERANCE and self.generated == self.generated_equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Hold the outcome of a verification.

    Args:
        checkpoint: What was verified.
        hf: Against which folder.
        layout: Degrees of the forward pass: tensor, pipeline, virtual.
        note: What the user should know about the layout, or "".
        tensors: Number of tensors compared.
        differing: Names of Hugging Face tensors that differ from the checkpoint's.
        comparisons: One a prompt.
        numbers: What transformers' model has otherwise than the sharded one, a phrase each; only imports look.
    """

    checkpoint: str
    hf: str
    layout: dict[str, int]
    note: str
    tensors: int
    differing: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    numbers: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all weights, numbers and logits agree."""
        return not self.differing and not self.numbers and all(c.passed for c in self.comparisons)

    def to_data(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return {"passed": self.passed, "tolerance": TOLERANCE, **asdict(self)}

    def require(self) -> None:
        """Raise unless everything agrees.

        Raises:
            ConvertError: Says what differs most.
        """
        if self.passed:
            return
        faults = list(self.numbers)
        if self.differing:
            shown = ", ".join(self.differing[:4]) + (" ..." if len(self.differing) > 4 else "")
            faults.append(f"{len(self.differing)} of {self.tensors} tensors differ ({shown})")
        failed = [c for c in self.comparisons if not c.passed]
        if failed:
            worst = max(failed, key=lambda c: math.inf if math.isnan(c.relative) else c.relative)
            faults.append(
                f"logits differ by {worst.max_abs_diff:.3g} where the largest is {worst.scale:.3g} (relative "
                f"{worst.relative:.2g}, allowed {TOLERANCE:.0e}) on the prompt {worst.prompt!r}"
            )
            if worst.generated != worst.generated_equal:
                faults.append(f"greedy tokens agree for {worst.generated_equal} of {worst.generated}")
        raise ConvertError(f"{self.hf} is not the model of {self.checkpoint}: " + "; ".join(faults))
