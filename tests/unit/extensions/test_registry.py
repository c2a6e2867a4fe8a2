from __future__ import annotations

import json

import pytest

from llama_scale.errors import PluginError
from llama_scale.extensions.registry import Entry, Registry
from llama_scale.launchers.base import LAUNCHERS, load_launcher
from llama_scale.launchers.local import LocalLauncher


def _registry() -> Registry:
    return Registry("launcher", {"json": Entry(name="json", target="json:JSONDecoder")})


def test_load_imports_the_named_attribute() -> None:
    assert _registry().load("json") is json.JSONDecoder


def test_built_in_launchers_all_load() -> None:
    assert {"local", "deepspeed"} <= set(LAUNCHERS.names)
    assert isinstance(load_launcher("local"), LocalLauncher)
    for name in LAUNCHERS.names:
        assert callable(load_launcher(name).render)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"no launcher is called 'jsn'; did you mean 'json'\?"):
        _registry().load("jsn")
    with pytest.raises(PluginError, match=r"no launcher is called 'xyz'; known: json"):
        _registry().load("xyz")


def test_clash_names_both_owners_and_hides_nothing() -> None:
    registry = _registry()
    with pytest.raises(PluginError, match=r"is brought by llama-scale \(json:JSONDecoder\) and by other \(a:b\)"):
        registry.add(Entry(name="json", target="a:b", distribution="other"))
    assert registry.load("json") is json.JSONDecoder


@pytest.mark.parametrize("target", ["no_such_module_at_all:x", "json:no_such_attribute"])
def test_broken_entry_names_its_distribution(target: str) -> None:
    registry = _registry()
    registry.add(Entry(name="broken", target=target, distribution="other"))
    with pytest.raises(PluginError, match=r"launcher 'broken' of other cannot be loaded from"):
        registry.load("broken")
