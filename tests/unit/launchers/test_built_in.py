"""Built-in launchers are found as any distribution's are."""

from __future__ import annotations

import pytest

from llama_scale.errors import PluginError
from llama_scale.extensions import discover
from llama_scale.extensions.api import LAUNCHERS
from llama_scale.launchers.base import load_launcher
from llama_scale.launchers.local import LocalLauncher
from llama_scale.spec.fields import kinds_of


def test_every_launcher_is_the_one_of_its_section() -> None:
    names = discover.names(LAUNCHERS)

    assert set(names) >= {"local", "ssh", "deepspeed", "slurm", "mpi", "kubernetes"}
    for name in names:
        assert kinds_of(discover.launcher(name).options) == (name,)


def test_the_named_launcher_is_loaded() -> None:
    assert isinstance(load_launcher("local"), LocalLauncher)
    for name in ("ssh", "deepspeed", "slurm", "mpi", "kubernetes"):
        assert callable(load_launcher(name).render)
    with pytest.raises(PluginError, match=r"no launcher is called 'locl'; did you mean 'local'\?"):
        load_launcher("locl")
