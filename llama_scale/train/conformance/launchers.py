"""The suite for launchers: what can be told without the system that they start processes on."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llama_scale.extensions import discover
from llama_scale.extensions.conformance import CheckRequest
from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.launcher_plugin import BUILT_IN
from llama_scale.spec.load import check_text, dump_spec
from llama_scale.spec.run import RunSpec
from llama_scale.train.conformance import light
from llama_scale.train.conformance.report import Failed, Report
from llama_scale.train.conformance.tiny import Tiny


def check(report: Report, request: CheckRequest, folder: Path) -> None:
    """Make all checks of one launcher."""
    del folder
    descriptor = discover.launcher(request.name)
    request = replace(request, options=request.options or descriptor.sample_options)
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
    spec = _spec(request)
    plan = make_plan(spec)
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


def _spec(request: CheckRequest) -> RunSpec:
    """Return a spec with this launcher, read as a file is."""
    document = Tiny(tp=2).spec().model_dump(mode="json", by_alias=True)
    own = dict(request.options) if request.name in BUILT_IN else {"options": dict(request.options)}
    document["launcher"] = {"kind": request.name, **own}
    loaded = check_text(json.dumps(document), name="spec", folder=str(Path.cwd()))
    if loaded.spec is None:
        raise Failed("; ".join(f"{problem.dotted}: {problem.message}" for problem in loaded.problems))
    return loaded.spec
