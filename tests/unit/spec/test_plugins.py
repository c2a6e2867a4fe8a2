"""Plugins in a spec: found by metadata, broken ones named, options checked at their place in the file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from llama_scale.errors import PLUGIN_CODE, PluginError, Problem, SpecError
from llama_scale.extensions import discover
from llama_scale.extensions.api import ADAPTERS, GATES, TASKS
from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.load import check_text, dump_spec, load_spec
from llama_scale.spec.plugin_schema import installed_schema
from llama_scale.spec.plugins import OWN_DISTRIBUTION, catalogue
from llama_scale.spec.quick import check_document
from tests.distributions import DESCRIPTOR, install
from tests.live_runs import environment
from tests.unit.spec.documents import INLINE, document

TARGET = "mine_plugin:DESCRIPTOR"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(folder) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def mine(site: Path) -> Path:
    source = DESCRIPTOR.replace("NAME", "mine")
    install(site, "mine-dist", points={ADAPTERS: {"mine": TARGET}}, modules={"mine_plugin": source})
    return site


def _spec(*adapters: dict[str, Any], **sections: Any) -> dict[str, Any]:
    named = [{"name": f"a{i}", **adapter} for i, adapter in enumerate(adapters)]
    return document(**{"model": INLINE, "adapters": named, "train": {"steps": 10, "from": "scratch"}} | sections)


def _problems(data: dict[str, Any], *, text: str | None = None, env: dict[str, str] | None = None) -> list[Problem]:
    loaded = check_text(text or json.dumps(data), name="run.yaml", folder="/base", env=env or {})
    return list(loaded.problems)


def _told(problems: list[Problem]) -> list[str]:
    return [f"{p.dotted}: {p.message}; {p.hint}" for p in problems]


def test_built_ins_are_entry_points_of_this_distribution_and_load() -> None:
    installed = catalogue()

    for group in (ADAPTERS, TASKS, GATES):
        mine = [entry for entry in installed.entries if entry.distribution == OWN_DISTRIBUTION and entry.group == group]
        assert mine
        for entry in mine:
            assert installed.load(group, entry.name).name == entry.name
    assert discover.adapter("lora").name == "lora"
    assert discover.task("sft").name == "sft"
    assert discover.gate("linear").name == "linear"
    assert "lora" in discover.names(ADAPTERS)


def test_options_get_defaults_and_absolute_paths(mine: Path) -> None:
    data = _spec({"kind": "mine", "options": {"file": "${env:DATA}/x", "layers": {"last": 1}}})
    loaded = check_text(json.dumps(data), name="run.yaml", folder="/base", env={"DATA": "d"})

    assert loaded.problems == ()
    assert loaded.spec is not None
    assert loaded.spec.adapters[0].options == {"layers": {"last": 1}, "size": 4, "file": "/base/d/x"}
    again = check_text(dump_spec(loaded.spec), name="spec.yaml", folder="/elsewhere", env={})
    assert again.spec == loaded.spec
    plan = make_plan(loaded.spec)
    assert [p.name for p in plan.extra] == ["decoder.layers.3.adapters.a0.w"]
    assert [p.owner for p in plan.extra] == ["adapter:a0"]
    assert not plan.base_trainable


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sise": 1}, "adapters[0].options.sise: unknown key 'sise'; did you mean 'size'?"),
        ({"size": "x"}, "adapters[0].options.size: 'x' is not an integer"),
        ({"size": 0}, "adapters[0].options.size: 0 must be at least 1"),
        ({"size": 13}, "adapters[0].options.size: size=13 brings bad luck; use another"),
        ({"layers": 3}, "adapters[0].options.layers: 3 has none of the forms that 'layers' takes; Which layers"),
        ({"layers": {"last": 0}}, "adapters[0].options.layers.last: 0 must be greater than 0"),
        ({"layers": {"lst": 2}}, "adapters[0].options.layers.lst: unknown key 'lst'; did you mean 'last'?"),
        ({"layers": [1, -1]}, "adapters[0].options.layers[1]: -1 must be at least 0"),
        ({"layers": {"last": 5}}, "adapters[0].options.layers: layers.last=5, but the model has 4 layers"),
        ({"layers": [1, 1]}, "adapters[0].options.layers: layers=[1, 1] names a layer twice"),
        ({"size": 5}, "adapters[0].options: adapter 'mine' with these options touches no module"),
        ({"size": 7}, "adapters[0].options: tensor=2 does not divide w, whose dim 0 is 7; use tensor 1 or 7"),
    ],
    ids=str,
)
def test_faulty_options_are_named_at_their_place(mine: Path, options: dict[str, Any], told: str) -> None:
    found = _told(_problems(_spec({"kind": "mine", "options": options})))

    assert any(line.startswith(told) for line in found), found


def test_keys_that_a_mapping_does_not_take_are_named() -> None:
    found = _told(_problems(_spec({"kind": "lora", "options": {"ranks": {"x_proj": 3, "q_proj": "a"}}})))

    assert any(
        line.startswith("adapters[0].options.ranks.x_proj: 'x_proj' is not a key that 'ranks' takes; did you mean")
        for line in found
    ), found
    assert any(line.startswith("adapters[0].options.ranks.q_proj: 'a' is not an integer") for line in found), found


def test_all_faults_are_reported_at_once_with_their_lines(mine: Path) -> None:
    data = _spec({"kind": "mine", "options": {"sise": 1}}, {"kind": "mime"}, {"kind": "mine", "options": {"size": 0}})
    text = json.dumps(data, indent=1)
    problems = [p for p in _problems(data, text=text) if p.path[0] == "adapters" and len(p.path) > 1]

    assert [p.dotted for p in problems] == ["adapters[0].options.sise", "adapters[1].kind", "adapters[2].options.size"]
    lines = text.splitlines()
    for problem, key in zip(problems, ("sise", "mime", "size"), strict=True):
        assert problem.line is not None and key in lines[problem.line - 1]
    assert problems[1].hint == "did you mean 'mine'?"


def test_a_bug_in_a_plugin_is_the_plugins_fault(mine: Path) -> None:
    problems = _problems(_spec({"kind": "mine", "options": {"size": 14}}))

    assert [p.code for p in problems] == [PLUGIN_CODE]
    assert "'mine' failed while checking these options: RuntimeError: a bug of the plugin" in problems[0].message
    assert SpecError(problems).exit_code == 4


def test_variables_stand_in_paths_only(mine: Path) -> None:
    found = _told(_problems(_spec({"kind": "mine", "options": {"size": "${env:N}"}}), env={"N": "3"}))

    assert any("environment variables are replaced in path fields only" in line for line in found)


BROKEN = {
    "raises": ("raise OSError('no driver')", "raised OSError: no driver"),
    "exits": ("import sys; sys.exit(3)", "raised SystemExit: 3"),
    "syntax": ("def", "raised SyntaxError"),
    "nothing": ("", "has no attribute 'DESCRIPTOR'"),
    "text": ("DESCRIPTOR = 'x'", "which is no descriptor (no api_version)"),
    "other-name": (DESCRIPTOR, "calls itself 'NAME'"),
    "version": (
        DESCRIPTOR.replace('name="NAME"', 'name="bad", api_version=2'),
        "was made for version 2 of the plugin interface; this llama-scale has version 1",
    ),
    "open-options": (
        DESCRIPTOR.replace("NAME", "bad").replace(
            'test\'s adapter."""', 'test\'s adapter."""\n    model_config = {"extra": "ignore"}'
        ),
        "accept unknown keys",
    ),
    "no-parameters": (
        "class D:\n    api_version = 1\n    name = 'bad'\n    options = int\n    implementation = summary = ''\n"
        "DESCRIPTOR = D()",
        "no field 'parameters'",
    ),
    "no-summary": ("class D:\n    api_version = 1\n    name = 'bad'\nDESCRIPTOR = D()", "no valid field 'options'"),
    "other-options": (DESCRIPTOR.replace("NAME", "bad").replace("options=Options", "options=dict"), "not a subclass"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_fatal_only_for_a_spec_that_uses_it(mine: Path, kind: str) -> None:
    source, reason = BROKEN[kind]
    install(mine, "bad-dist", points={ADAPTERS: {"bad": "bad_plugin:DESCRIPTOR"}}, modules={"bad_plugin": source})

    assert _problems(_spec({"kind": "mine"})) == []
    problems = _problems(_spec({"kind": "bad"}))

    assert [p.code for p in problems] == [PLUGIN_CODE]
    assert "adapter 'bad' of bad-dist 1.0" in problems[0].message
    assert reason in problems[0].message
    assert problems[0].hint == "upgrade, repair or uninstall bad-dist"
    with pytest.raises(PluginError, match="bad-dist"):
        discover.adapter("bad")


def test_an_entry_point_of_another_form_is_broken(site: Path) -> None:
    install(site, "bad-dist", points={ADAPTERS: {"bad": "just_a_module"}})

    problems = _problems(_spec({"kind": "bad"}))

    assert "'just_a_module' is not of the form package.module:attribute" in problems[0].message


def test_unreadable_entry_points_hide_nothing(mine: Path) -> None:
    install(mine, "rotten", points="[llama_scale.adapters]\nno equals sign\n")

    installed = catalogue()

    assert [u.distribution for u in installed.unreadable] == ["rotten"]
    assert {"mine", "lora"} <= set(installed.names(ADAPTERS))


def test_a_clash_names_both_distributions_and_hides_nothing(mine: Path) -> None:
    install(mine, "thief", points={ADAPTERS: {"lora": TARGET}})

    assert _problems(_spec({"kind": "mine"})) == []
    problems = _problems(_spec({"kind": "lora"}))

    assert [p.code for p in problems] == [PLUGIN_CODE]
    assert "llama-scale 0" in problems[0].message and "thief 1.0 (mine_plugin:DESCRIPTOR)" in problems[0].message
    assert SpecError(problems).exit_code == 4


def test_two_copies_of_one_distribution_are_no_clash(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = mine.parent / "other"
    other.mkdir()
    install(other, "mine-dist", points={ADAPTERS: {"mine": "older:DESCRIPTOR"}}, version="0.9")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])

    assert catalogue().owner(ADAPTERS, "mine").version == "1.0"


def test_an_older_installation_of_this_checkout_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.distributions", list)

    problems = _problems(_spec({"kind": "lora"}))

    assert problems[0].message == "no adapter of kind 'lora' is installed"
    assert "pip install -e . --no-deps" in problems[0].hint


def test_an_unknown_name_says_what_is_installed(mine: Path) -> None:
    with pytest.raises(PluginError, match=r"no adapter is called 'zzz'; install the distribution.*lora"):
        discover.adapter("zzz")
    with pytest.raises(PluginError, match=r"implementation of 'mine' cannot be loaded: importing no_such_module"):
        discover.implementation(discover.adapter("mine"))


@pytest.mark.parametrize(
    ("parameter", "reason"),
    [
        ("3", "is no ExtraParameter"),
        ("ExtraParameter(name='a/b', shape=(2,))", "not made of words joined by dots"),
        ("ExtraParameter(name='a', shape=())", "sizes are positive integers"),
        ("ExtraParameter(name='a', shape=(0,))", "sizes are positive integers"),
        ("ExtraParameter(name='a', shape=(2,), tp_dim=1)", "has tp_dim=1"),
        ("ExtraParameter(name='a', shape=(2,), init='xavier')", "init='xavier'"),
        ("ExtraParameter(name='a', shape=(2,), init='normal')", "std has to be positive"),
        ("ExtraParameter(name='a', shape=(2,)), ExtraParameter(name='a', shape=(2,))", "two parameters are called 'a'"),
    ],
)
def test_a_descriptor_that_names_impossible_parameters_is_broken(site: Path, parameter: str, reason: str) -> None:
    source = DESCRIPTOR.replace("NAME", "mine").replace("return ()", f"return ({parameter},)")
    install(site, "mine-dist", points={ADAPTERS: {"mine": TARGET}}, modules={"mine_plugin": source})

    problems = _problems(_spec({"kind": "mine", "options": {"size": 5}}))

    assert [p.code for p in problems] == [PLUGIN_CODE]
    assert reason in problems[0].message


def test_schema_has_the_options_of_plugins_and_says_which_it_leaves_out(mine: Path) -> None:
    install(mine, "bad-dist", points={ADAPTERS: {"bad": "bad_plugin:DESCRIPTOR"}}, modules={"bad_plugin": "def"})

    schema, left_out = installed_schema()
    validator = jsonschema.Draft202012Validator(schema)

    assert [reason for reason in left_out if "bad-dist" in reason]
    assert validator.is_valid(_spec({"kind": "mine", "options": {"size": 3, "layers": [0]}}))
    assert validator.is_valid(_spec({"kind": "lora", "options": {"rank": 3}}))
    for wrong in ({"kind": "mine", "options": {"rank": 3}}, {"kind": "lora", "options": {"size": 3}}, {"kind": "bad"}):
        assert not validator.is_valid(_spec(wrong)), wrong
    own, _ = installed_schema(built_in_only=True)
    assert "adapter-mine" in schema["$defs"] and "adapter-mine" not in own["$defs"]


def test_quick_check_leaves_specs_with_plugins_to_the_full_check(mine: Path) -> None:
    assert check_document(_spec({"kind": "mine"})) is None
    assert check_document(document(model=INLINE)) is not None


_PROBE = """
import sys
from llama_scale.cli.checking import run_checks
status = run_checks(sys.argv[1:])
print(status, sorted({"torch", "numpy", "importlib.metadata"} & set(sys.modules)))
"""


@pytest.mark.parametrize("adapters", [[], [{"name": "a", "kind": "lora"}]], ids=["without", "with"])
def test_validate_imports_no_torch_and_reads_metadata_only_for_plugins(tmp_path: Path, adapters: list[Any]) -> None:
    spec = tmp_path / "run.yaml"
    spec.write_text(json.dumps(document(model=INLINE, adapters=adapters)))
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(spec)], capture_output=True, text=True, env=environment(), timeout=60
    )

    assert done.stdout.splitlines()[-1].endswith("['importlib.metadata']" if adapters else "[]"), done


def test_load_spec_exits_4_for_plugins_alone(mine: Path, tmp_path: Path) -> None:
    install(mine, "thief", points={ADAPTERS: {"mine": TARGET}})
    spec = tmp_path / "run.yaml"
    spec.write_text(json.dumps(_spec({"kind": "mine"})))
    with pytest.raises(SpecError) as caught:
        load_spec(spec)
    assert caught.value.exit_code == 4
    with pytest.raises(SpecError) as caught:
        load_spec(spec, overrides=["train.steps=0"])
    assert caught.value.exit_code == 3
