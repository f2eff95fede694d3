# SPDX-License-Identifier: Apache-2.0
"""
The fixture `node`, the agent's log in every failure, and no silent skip: with REQUIRE_ALL=1 a skipped test has failed.
"""
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import harness  # noqa: E402

LOG_LINES = int(os.environ.get("LOG_LINES") or 200)


def pytest_collection_modifyitems(items):
    """Without the binary nothing that needs it can run; say so once per test."""
    if harness.AGENT.exists():
        return
    missing = pytest.mark.skip(reason=f"{harness.AGENT} is not built")
    for item in items:
        if {"node", "agent_binary"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(missing)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.skipped and os.environ.get("REQUIRE_ALL") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_ALL=1: skipped: {report.longrepr[-1] if report.longrepr else ''}"
    if report.failed:
        for agent in harness.AGENTS:
            report.sections.append((f"log of the agent in {agent.directory}", "\n".join(agent.lines[-LOG_LINES:])))


@pytest.fixture(autouse=True)
def forget_agents():
    yield
    harness.AGENTS.clear()


@pytest.fixture
def agent_binary():
    return harness.AGENT


@pytest.fixture
def node(agent_binary):
    """One node; at the end of a test that passed the agent must stop cleanly on SIGTERM."""
    made = harness.Node()
    try:
        yield made
        for agent in harness.AGENTS:
            if agent.running():
                agent.stop()
            agent.check()
    finally:
        made.close()
