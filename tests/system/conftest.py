# SPDX-License-Identifier: Apache-2.0
"""One lab and one world for the whole run. A failed test shows the end of its nodes' journals."""
import os
import pathlib
import signal
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from lab import Lab, Unable  # noqa: E402
from world import CONFIG, UNIT, World, units_of  # noqa: E402


def interrupt(number, _frame):
    raise KeyboardInterrupt(number)


@pytest.fixture(scope="session")
def lab():
    signal.signal(signal.SIGTERM, interrupt)  # lest nodes and namespaces stay behind
    made = Lab()
    try:
        try:
            made.open()
        except Unable as reason:
            pytest.skip(f"no nodes on this machine: {reason}")
        yield made
    finally:
        made.close(keep=bool(os.environ.get("KEEP")))


@pytest.fixture(scope="session")
def bare(lab):
    """What all nodes share; none is started."""
    made = World(lab)
    made.prepare()
    yield made
    made.close()


@pytest.fixture(scope="session")
def world(bare):
    """Booted nodes with a Worker each; no agent yet."""
    return bare.start()


@pytest.fixture(scope="session")
def cluster(world):
    """Agents installed on all nodes, and everybody registered."""
    for name in world.nodes:
        world.install(name)
    for name in world.nodes:
        world.wait_watching(name)
    world.wait_workers()
    return world


@pytest.fixture
def field(cluster):
    """The cluster in order, at the start of a test and put back in order after it."""
    yield cluster
    cluster.lab.rules()
    cluster.start_plane()
    for name, node in cluster.nodes.items():
        node.heal()
        if not node.running():
            node.start()
        folder = f"/etc/systemd/system/{UNIT}.d"
        changed = node.code("test", "-e", folder) == 0 or node.run("cat", CONFIG) != cluster.config(name)
        if changed:
            node.run("rm", "-rf", folder)
            node.write(CONFIG, cluster.config(name))
            node.run("systemctl", "daemon-reload")
            node.run("systemctl", "reset-failed", UNIT, check=False)
            node.run("systemctl", "restart", UNIT)
        elif node.run("systemctl", "is-active", UNIT, check=False).strip() != "active":
            node.run("systemctl", "restart", UNIT)
    for name in cluster.nodes:
        cluster.wait_watching(name)
    cluster.wait_workers()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    report = outcome.get_result()
    made = getattr(item, "funcargs", {}).get("lab") or getattr(item.funcargs.get("field") or item.funcargs.get("bare"), "lab", None)
    if report.failed and made is not None:
        for node in made.nodes:
            report.sections.append((f"journal of {node.name}", units_of(node.journal("-n", "40"))))
