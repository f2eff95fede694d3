# SPDX-License-Identifier: Apache-2.0
"""
plane: the reference control plane

Three gRPC services over one SQLite file: JobService and OperationService for callers, CancelAgentService for agents,
by docs/contract.md. It exists so that the agent, and any client of the published API, can be tried against
something that keeps every rule of the contract and can be told to break them.

    wire      ids, times, raw protobuf fields, the table of outcomes
    state     SQLite: jobs, operations, the append-only log, verdicts, reports; one lock
    rules     what a report does to an operation, and who ends it when
    masters   Spark's REST API: create and status
    jobs      CreateJobRequest checked and turned into a submission; the poller that follows Spark
    access    who may speak as whom: tokens and certificates
    faults    what a test wants to go wrong
    callers   JobService, OperationService, ApiEndpointService
    agents    CancelAgentService
    server    ControlPlane: start, stop, restart
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import generate  # noqa: E402

generate.ensure()
