"""Real hosts for the tests of this folder.

They change the machine (namespaces, /etc/hosts, packages), so they run as root with CI=1 or LS_CLUSTER=1 only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import PACKAGES, Hosts, bring_up, install_packages

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def machines() -> Iterator[Hosts]:
    """A head machine and two nodes, for the whole session."""
    install_packages(PACKAGES)
    hosts = bring_up(2)
    yield hosts
    hosts.close()


@pytest.fixture
def hosts(machines: Hosts) -> Iterator[Hosts]:
    """The hosts, all switched on and whole."""
    for host in machines.all:
        if host.pid is None:
            machines.boot(host)
    machines.wait_for_ssh()
    yield machines
