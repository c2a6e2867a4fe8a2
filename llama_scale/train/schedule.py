"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from llama_scale.spec.schedule import CosineSchedule, Schedule, WsdSchedule


def learning_rate(schedule: Schedule, *, step: int, steps: int, peak: float) -> float:
    """Return the rate of one step.

    With w warm-up steps, the n-th step has rate ``peak * n / w`` up to n = w; after that

    * constant: ``peak``;
    * cosine: ``min + (peak - min) * (1 + cos(pi * p)) / 2`` with p from 0 at n = w to 1 at the last step
      (Loshchilov and Hutter, SGDR, 2017, equation 5, one period);
    * wsd: ``peak`` until the last ``decay_steps`` steps, then ``min + (peak - min) * f(p)`` with p from 0 to 1 and
      f(p) = 1 - p or 1 - sqrt(p) (Haegele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed Training
      Durations, 2024, section 3).

    Args:
        schedule: The spec's section.
        step: Number of the step, 1 to ``steps``.
        steps: Length of the run.
        peak: The optimizer's ``lr``.
    """
    warmup = schedule.warmup_steps
    if step <= warmup:
        return peak * step / warmup
    if isinstance(schedule, CosineSchedule):
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        share = (1.0 + math.cos(math.pi * progress)) / 2.0
        return peak * (schedule.min_ratio + (1.0 - schedule.min_ratio) * share)
    if isinstance(schedule, WsdSchedule):
        progress = min(1.0, max(0.0, (step - (steps - schedule.decay_steps)) / schedule.decay_steps))
        share = 1.0 - (math.sqrt(progress) if schedule.decay == "sqrt" else progress)
        return peak * (schedule.min_ratio + (1.0 - schedule.min_ratio) * share)
    return peak
