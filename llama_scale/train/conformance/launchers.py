"""The suite for launchers: what can be told without the system that they start processes on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from llama_scale.extensions import discover
from llama_scale.extensions.conformance import CheckRequest
from llama_scale.spec.load import dump_spec
from llama_scale.train.conformance import light
from llama_scale.train.conformance.report import Failed, Report
from llama_scale.train.conformance.tiny import Tiny


def check(report: Report, request: CheckRequest, folder: Path) -> None:
    """Make all checks of one launcher."""
    del folder
    descriptor = discover.launcher(request.name)
    report.check("light descriptor", partial(light.descriptor_is_light, request))
    launcher = report.check("implementation", partial(_load, descriptor))
    if launcher is not None:
        report.check("bundle", partial(_bundle, launcher, request))


def _load(descriptor: Any) -> Any:
    launcher = discover.implementation(descriptor)()
    missing = [name for name in ("render", "submit") if not callable(getattr(launcher, name, None))]
    if missing:
        raise Failed(f"it has no method {' and '.join(missing)}")
    return launcher


def _bundle(launcher: Any, request: CheckRequest) -> str:
    """The bundle is text, the same each time, and holds the spec and the plan."""
    tiny = Tiny(tp=2, sections={"launcher": {"kind": request.name, **request.options}})
    spec, plan = tiny.spec(), tiny.plan()
    render = partial(launcher.render, spec, plan, python="/usr/bin/python3")
    first, second = render(), render()
    if first.files != second.files:
        raise Failed("two renderings of one spec differ: render() is not pure")
    missing = {"spec.yaml", "plan.json"} - set(first.files)
    if missing:
        raise Failed(f"the bundle has no {' and no '.join(sorted(missing))}")
    if first.files["spec.yaml"] != dump_spec(spec) or first.files["plan.json"] != plan.to_json():
        raise Failed("spec.yaml and plan.json are not those of the run")
    return ", ".join(sorted(first.files))
