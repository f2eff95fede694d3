# SPDX-License-Identifier: Apache-2.0
"""
A network that fails: between agent and control plane and between agent and masters stands a proxy that delays, cuts, drops,
freezes, resets and splits, in both directions, by seed. Many cancels go through it; then the ledgers are compared: what the
control plane was told, what the agent remembers, what the masters were asked, and which processes live.

    NETWORK_WORLDS=6 NETWORK_DRIVERS=150 SEED=7      `make check-network`; without them a short one runs
"""
import datetime
import json
import os
import random
import re
import subprocess

import pytest

from certificates import Authority
from faultproxy import FaultProxy
from harness import AGENT, CLUSTER, LIMIT, Job, until

WORLDS = int(os.environ.get("NETWORK_WORLDS") or 2)
DRIVERS = int(os.environ.get("NETWORK_DRIVERS") or 16)
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
DRIVERS_PER_WORKER = 8
FREEZE = 4.0 if DRIVERS > 50 else 1.5  # longer than three heartbeats, where there is time for it
KILL_RETRY = 2.5  # of Node.agent_defaults
WAIT = 150  # the operations' deadline: none may need it
KILL = "POST /v1/submissions/kill/"


class World:
    """A node whose connections all lead through proxies."""

    def __init__(self, node, seed, tls):
        self.node = node
        self.dice = random.Random(seed)
        self.masters = [node.add_master("ALIVE"), node.add_master("STANDBY")]
        plane, agent = {"deadline": float(WAIT), "not_found_grace": 0.5}, {}
        if tls:
            authority = Authority(node.directory)
            server = authority.issue("server")
            plane.update(tls_cert=server.certificate, tls_key=server.key)
            agent["ca_file"] = authority.certificate
        node.start_plane(**plane)
        port = int(node.plane.address.rpartition(":")[2])
        # The stream lives long: let it get somewhere. A request to Spark is
        # short: let it be hit.
        self.to_plane = FaultProxy(port, seed, "plane", {"pass": 3, "refuse": .5}, reach=30_000, seconds=FREEZE).start()
        self.to_masters = [FaultProxy(master.port, seed, f"master{number}", {"pass": 2, "refuse": .5}, reach=1500, seconds=1.5,
                                      ledger=True).start() for number, master in enumerate(self.masters)]
        node.make_agent(endpoint=f"{'https' if tls else 'http'}://127.0.0.1:{self.to_plane.port}", connect_timeout="1s",
                        masters=",".join(f"http://127.0.0.1:{proxy.port}" for proxy in self.to_masters), request_timeout="1s",
                        report_timeout="1s", **agent).start()

    @property
    def proxies(self):
        return [self.to_plane, *self.to_masters]

    def start_drivers(self, count):
        """-> those to be cancelled, and one bystander for each Worker."""
        drivers, bystanders = [], []
        for first in range(0, count, DRIVERS_PER_WORKER):
            worker, name = self.node.root(), f"worker-{first:04d}"
            for number in range(first, min(first + DRIVERS_PER_WORKER, count)):
                drivers.append(self.node.run_job(f"j{number}", worker=worker, worker_id=name,
                                                 sigterm=self.dice.choice(["die", "die", "exit0", "200", "ignore"])))
            bystanders.append(self.node.run_job(f"b{first}", worker=worker, worker_id=name))
        return drivers, bystanders

    def faults(self):
        return sum((proxy.faults for proxy in self.proxies), start=type(self.to_plane.faults)())

    def close(self):
        for proxy in self.proxies:
            proxy.close()


@pytest.fixture
def make_world(node):
    made = []

    def make(seed, tls):
        made.append(World(node, seed, tls))
        return made[-1]

    yield make
    for world in made:
        world.close()


def kills(world):
    """Every kill request that left the agent whole, by driver id, in order."""
    found = {}
    for exchange in [exchange for proxy in world.to_masters for exchange in proxy.exchanges()]:
        if exchange.line.startswith(KILL):
            found.setdefault(exchange.line[len(KILL):].split(" ")[0], []).append(exchange)
    return {driver_id: sorted(exchanges, key=lambda one: one.asked) for driver_id, exchanges in found.items()}


def check_kills(world, reports):
    """Only what was cancelled was asked for; no more than was told; and no accepted kill again before kill_retry."""
    found = kills(world)
    assert set(found) <= set(reports), "a kill for a driver that nobody cancelled"
    for driver_id, exchanges in found.items():
        # libcurl sends again by itself what a kept-alive connection lost without an answer (http.h); the contract counts
        # what was handed to it.
        resent = sum(not earlier.is_first and not earlier.answered for earlier in exchanges[:-1])
        assert len(exchanges) - resent <= reports[driver_id].kill_requests, f"{driver_id}: {exchanges}"
    # what the agent knew is in its log (an answer may have come too late for it); what it did then, the proxy saw
    for kill in accepted_kills(world):
        for exchange in found[kill["driver"]]:
            early = 0 < exchange.asked - kill["at"] < 0.9 * KILL_RETRY
            assert not early, f"killed again too soon after {kill}: {found[kill['driver']]}"
    return sum(map(len, found.values()))


def accepted_kills(world):
    """The accepted kills that the agent knows of."""
    matches = [re.match(r"(\S+)Z info kill accepted: driver (\S+) of", line) for line in world.node.agent.lines]
    found = [{"at": datetime.datetime.fromisoformat(match[1] + "+00:00").timestamp(), "driver": match[2]}
             for match in matches if match]
    assert found, "the agent logged no accepted kill"
    return found


def remembered(node):
    """Operation -> outcome, as the agent remembers them."""
    socket = node.agent.keys["runtime_directory"] / "bus"
    result = subprocess.run([AGENT.parent / "spark-cancelctl", f"--socket={socket}", "list", "--all", "--json"],
                            capture_output=True, text=True, timeout=LIMIT, check=True)
    return {row["operation_id"]: row for row in json.loads(result.stdout)["operations"]}


@pytest.mark.parametrize("number", range(WORLDS))
def test_cancels_through_a_network_that_fails(make_world, number):
    seed = SEED + number
    print(f"SEED={seed} (with NETWORK_WORLDS=1)")
    world = make_world(seed, tls=(SEED + number) % 2 == 0)
    node = world.node
    drivers, bystanders = world.start_drivers(DRIVERS)
    absent = [f"absent{number}" for number in range(DRIVERS // 8)]
    for job_id in absent:
        node.plane.add_job(job_id)
    everything = [*(driver.job_id for driver in drivers), *absent]
    world.dice.shuffle(everything)
    operations = {job_id: node.plane.cancel(job_id).id for job_id in everything}

    reports = {}
    for driver in drivers:
        done = node.plane.wait_done(operations[driver.job_id], WAIT)
        assert not driver.alive(), f"{driver.job_id}: done, and it lives"
        assert done.WhichOneof("result") == "response", f"{driver.job_id}: {done.error.message}"
        report = node.final(operations[driver.job_id])
        assert report.outcome == "CANCELLED" and report.metadata.driver_id == driver.id
        assert node.plane.job(driver.job_id).status == Job.CANCELLED
        reports[driver.id] = report.metadata
    for job_id in absent:
        assert node.plane.wait_done(operations[job_id], WAIT).error.code == 5 and not node.finals(operations[job_id])
    for bystander in bystanders:
        assert bystander.alive() and not bystander.kills and node.plane.job(bystander.job_id).status == Job.RUNNING

    for proxy in world.proxies:
        proxy.calm()
    # the agent's own ledger: every report is answered, and says the same
    settled = until(lambda: (rows := remembered(node)) and all(row["state"] == "DONE" for row in rows.values()) and rows,
                    "the answer to every report", WAIT)
    for driver in drivers:
        assert settled[operations[driver.job_id]]["outcome"] == "CANCELLED"
    requests = check_kills(world, reports)
    faults = world.faults()
    assert sum(faults.values()) - faults["connections"] > 0, "the network was sound: nothing was tried"
    print(f"network: {len(operations)} cancels in {CLUSTER}, {requests} kill requests, {dict(faults)}")
