# SPDX-License-Identifier: Apache-2.0
"""
options: what a control plane is started with. Times are seconds.
"""
import dataclasses

from . import wire


@dataclasses.dataclass
class Options:
    clusters: list = dataclasses.field(default_factory=lambda: ["cluster-1"])
    listen: str = "127.0.0.1:0"
    advertise: str = ""                 # what ApiEndpointService tells; "": where it listens
    state: str = "controlplane.db"
    masters: list = dataclasses.field(default_factory=list)
    master_uis: list = dataclasses.field(default_factory=list)  # web UIs of the masters: they know those of the Workers
    spark_master: str = ""              # spark.master of submissions; "": spark:// and the hosts of `masters`
    spark_timeout: float = 10.0
    spark_token_file: str = ""
    poll: float = 1.0                   # how often unfinished jobs are asked for
    deadline: float = 900.0
    deadline_grace: float = 30.0
    not_found_grace: float = 20.0
    invalid_grace: float = 20.0
    relaunch_window: float = 75.0
    node_lifetime: float = 60.0         # a node counts as live so long after its stream has ended
    heartbeat: float = 10.0
    send_driver_id: bool = False
    max_open: int = 50_000
    keep_log: int = 100_000             # revisions of a cluster that are kept
    tokens: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    client_ca: str = ""
    connection_age: float = 0.0         # after it a connection gets GOAWAY; 0: never
    connection_grace: float = 3600.0    # and is cut so long after that
    workers: int = 2048                 # threads at most: one for each stream and call

    def usec(self, name):
        return round(getattr(self, name) * wire.USEC)
