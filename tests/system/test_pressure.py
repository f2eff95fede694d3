# SPDX-License-Identifier: Apache-2.0
"""
A node whose jobs have eaten its CPUs and memory: that is where a cancel is needed most.
"""
import time

import pytest

from lab import control_groups, until
from test_faults import restarts
from world import UNIT

SPINNERS = 8
SPARE = 24 << 20


def node_memory(node):
    """The node's memory control group, as the kernel has it."""
    for folder in control_groups(node.machine):
        for limit, usage in (("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")):
            if (folder / limit).exists():
                return folder / limit, folder / usage
    return None


def test_cancel_on_a_full_node(field):
    """Eight busy processes, and memory filled to the last 24 MB of what the node has: the driver dies within seconds."""
    node, job = field.nodes["n1"], field.run_job("n1")
    found = node_memory(node)
    if found is None:
        pytest.skip("no memory controller on this machine")
    limit, usage = found
    before = restarts(node)
    eaten = int(usage.read_text(encoding="ascii")) + (128 << 20)
    old = limit.read_text(encoding="ascii")
    for number in range(SPINNERS):
        node.run("systemd-run", "-q", f"--unit=spin{number}", "-p", "RuntimeMaxSec=120", "sh", "-c", "while :; do :; done")
    try:
        limit.write_text(str(eaten), encoding="ascii")
        # in memory that can't be given back: the page cache of everybody goes first
        room = eaten - int(usage.read_text(encoding="ascii")) - SPARE
        node.run_as_unit("sh", "-c", f"head -c {room} /dev/zero >/dev/shm/eaten", check=False)
        start = time.monotonic()
        operation = field.cancel(job.id)
        until(lambda: not job.alive(), 60, "the driver's end")
        field.wait_cancelled(operation, job)
        took = time.monotonic() - start
    finally:
        node.run("rm", "-f", "/dev/shm/eaten")
        limit.write_text("-1" if "bytes" in limit.name else old, encoding="ascii")
        node.run("systemctl", "stop", *[f"spin{number}" for number in range(SPINNERS)])
    assert restarts(node) == before, "the agent itself was killed"
    assert node.show(UNIT, "ActiveState")["ActiveState"] == "active"
    print(f"cancelled on a full node in {took:.2f} s")
