# SPDX-License-Identifier: Apache-2.0
"""For every pytest suite: with REQUIRE_ALL=1 (CI) a skipped test is a failure, lest a suite rots unseen."""
import os

import pytest


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("REQUIRE_ALL") == "1" and skipped and exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"REQUIRE_ALL=1: {len(skipped)} skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
