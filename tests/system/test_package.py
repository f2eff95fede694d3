# SPDX-License-Identifier: Apache-2.0
"""
The life of the package on a machine of its own: installed, configured, upgraded, removed, purged.
"""
import pytest

from lab import run, until
from world import BUILD, CONFIG, UNIT, VERSION, config, repack

GOOD = {"control_plane__endpoint": "http://control:9", "spark__masters": "http://control:6066"}


@pytest.fixture(scope="module")
def machine(bare):
    """A node without Spark; later versions of the package are in /mnt/shown."""
    for version in ("0.1.1~test", "0.1.2~test"):
        made = repack(bare.deb, version, bare.directory)
        (bare.directory / "shown" / f"{version}.deb").write_bytes(made.read_bytes())
    node = bare.lab.add("p1", 21).start()
    yield node
    node.power_off()


def active(node):
    return node.run("systemctl", "is-active", UNIT, check=False).strip()


def settled(node):
    """The unit's state when it is no longer on its way to another."""
    return until(lambda: active(node) if active(node) not in ("activating", "deactivating", "reloading") else None, 30, "the unit to settle")


def test_package_life(machine):
    """In one test, since each step stands on the one before."""
    node = machine
    node.run("dpkg", "-i", "/mnt/shown/agent.deb")

    # Installed: enabled, not started, no failure, and whoever looks is told why.
    assert node.run("systemctl", "is-enabled", UNIT).strip() == "enabled"
    assert settled(node) == "inactive"
    status = node.run("systemctl", "status", UNIT, check=False)
    assert "not started: cluster_id is not set in /etc/spark-cancel-agent/agent.conf" in status, status
    assert node.run("systemctl", "--failed", "--no-legend").strip() == ""
    assert "spark-cancel" in node.run("id", "spark-cancel")
    assert node.run("stat", "-c", "%a %U %G", CONFIG).split() == ["644", "root", "root"]

    # A wrong configuration: exit 78, said once, no second attempt.
    node.write(CONFIG, config(**{**GOOD, "control_plane__endpoint": None}))
    node.run("systemctl", "start", UNIT, check=False)
    until(lambda: settled(node) == "failed", 20, "the failure")
    shown = node.show(UNIT, "ExecMainStatus", "NRestarts", "Result")
    assert (shown["ExecMainStatus"], shown["NRestarts"], shown["Result"]) == ("78", "0", "exit-code")
    assert "endpoint" in node.run("systemctl", "status", UNIT, check=False)
    # So is one that the agent may not read, and one that is not there.
    for spoil in (("chmod", "0", CONFIG), ("rm", CONFIG)):
        node.run(*spoil)
        node.run("systemctl", "start", UNIT, check=False)
        until(lambda: settled(node) == "failed", 20, "the failure")
        assert node.show(UNIT, "ExecMainStatus")["ExecMainStatus"] == "78"

    # A right one: started, whether or not anybody can be reached.
    mine = config(**GOOD) + "# mine\n"
    node.write(CONFIG, mine)
    assert node.code("spark-cancel-agent", "--check-config") == 0
    node.run("systemctl", "start", UNIT)
    assert active(node) == "active"
    assert node.run("stat", "-c", "%a %U", "/var/lib/spark-cancel-agent").split() == ["700", "spark-cancel"]
    assert node.run("stat", "-c", "%a %U", "/run/spark-cancel-agent").split() == ["755", "spark-cancel"]
    assert node.run("stat", "-c", "%a", "/run/spark-cancel-agent/bus").strip() == "666"

    # An upgrade restarts it and leaves the configuration alone.
    pid = node.show(UNIT, "MainPID")["MainPID"]
    node.run("dpkg", "-i", "/mnt/shown/0.1.1~test.deb")
    assert active(node) == "active" and node.show(UNIT, "MainPID")["MainPID"] not in ("0", pid)
    assert node.run("cat", CONFIG) == mine

    # What the administrator has turned off stays off.
    node.run("systemctl", "disable", "--now", UNIT)
    node.run("dpkg", "-i", "/mnt/shown/0.1.2~test.deb")
    assert node.run("systemctl", "is-enabled", UNIT, check=False).strip() == "disabled" and active(node) == "inactive"
    node.run("systemctl", "enable", "--now", UNIT)
    assert active(node) == "active"

    # Removed: stopped, and what is the administrator's and the agent's stays.
    node.run("dpkg", "-r", "spark-cancel-agent")
    assert active(node) == "inactive" and node.code("test", "-e", "/usr/bin/spark-cancel-agent") != 0
    assert node.run("cat", CONFIG) == mine
    assert node.code("test", "-s", "/var/lib/spark-cancel-agent/agent.db") == 0
    assert node.code("test", "-e", "/run/spark-cancel-agent") != 0

    # Installed again: as it was before.
    node.run("dpkg", "-i", "/mnt/shown/agent.deb")
    assert active(node) == "active" and node.run("cat", CONFIG) == mine

    # Purged: nothing is left but the user.
    node.run("dpkg", "-P", "spark-cancel-agent")
    left = node.run("find", "/etc", "/usr", "/var", "/run", "/lib/systemd", "-xdev", "-name", "*spark-cancel*", "-not", "-path",
                    "/var/log/*").split()
    assert left == [], left
    assert node.code("id", "spark-cancel") == 0
    assert node.run("systemctl", "--failed", "--no-legend").strip() == ""
    assert node.run("systemctl", "status", UNIT, check=False).startswith("Unit spark-cancel-agent.service could not be found")


def test_rpm(bare):
    """The RPM's files and its user on a tree that dpkg has not touched: it boots, is skipped with a word, and runs when
    configured. (What RHEL's own scripts do after the installation is not there to be tried.)"""
    rpm, = (BUILD / "rpm").glob(f"spark-cancel-agent-{VERSION}-1*.x86_64.rpm")
    node = bare.lab.add("p2", 22)
    mount = f"lowerdir={bare.lab.layer}:{bare.lab.base},upperdir={node.upper},workdir={node.directory}/work"
    install = "mount -t overlay overlay -o \"$1\" \"$2\" && rpm --root \"$2\" --install --nodeps --nosignature \"$3\""
    run("unshare", "-m", "--propagation", "private", "sh", "-ec", install, "sh", mount, node.directory / "root", rpm)
    node.start()
    try:
        assert "spark-cancel" in node.run("id", "spark-cancel")
        node.run("systemctl", "enable", "--now", UNIT)
        assert settled(node) == "inactive"
        assert "not started: cluster_id is not set" in node.run("systemctl", "status", UNIT, check=False)
        node.write(CONFIG, config(**GOOD))
        node.run("systemctl", "start", UNIT)
        assert active(node) == "active"
        assert node.code("spark-cancelctl", "status") == 0
    finally:
        node.power_off()
