# SPDX-License-Identifier: Apache-2.0
"""
Rules of docs/contract.md that bind an agent, in the order of its sections, each named after what it says. README.md in this
folder maps every rule to its tests; most have theirs in the files named there, and this one holds the rest.
"""
import pytest

from badserver import BadServer, frame
from harness import CLUSTER, LIMIT, Job, agent_pb2, rules, until, wire


@pytest.fixture
def server():
    with BadServer() as made:
        yield made


def scripted(node, server, **keys):
    """An agent of the scripted server."""
    node.add_master()
    node.make_agent(endpoint=server.endpoint, **keys).start()
    return node


def command(operation_id, job_id="j1", metadata=None, **fields):
    """A caller's Operation."""
    metadata = metadata or wire.pack(wire.CreateJobMetadata(cluster_id=CLUSTER, job_id=job_id))
    return wire.Operation(id=operation_id, description="Cancel Spark job", metadata=metadata, **fields)


def works(node, job_id="again"):
    """A whole cancel: what was to come before it has come."""
    driver = node.run_job(job_id)
    return node.wait_cancelled(node.cancel(job_id), driver)


def cancelled_at(server, operation, driver):
    report = server.wait_final(operation)
    assert report.outcome == "CANCELLED" and not driver.alive()
    return report


def watches(server):
    return [call for call in server.calls if call.method == "Watch"]


# ---- 4. Watch

def test_out_of_range_starts_over_from_0_and_backs_off(node, server):
    """At once the first time, since the server has said what to do; then no faster than the back-off."""
    calls = server.misbehave("Watch", lambda call: call.trailers_only(11, "the history is gone"), 5)
    scripted(node, server, reconnect_min="50ms", reconnect_max="200ms")
    server.wait_script("Watch")
    driver = node.start_driver("j1")
    cancelled_at(server, server.cancel("j1"), driver)
    assert {call.request.after_revision for call in watches(server)} == {0}
    gaps = [later.at - earlier.at for earlier, later in zip(calls[1:], calls[2:])]
    assert all(gap >= least / 2 for gap, least in zip(gaps, (0.05, 0.1, 0.2))), gaps
    node.agent.wait_log("the history is gone")


def test_operation_absent_from_a_replay_goes_to_its_end(node):
    """The control plane was restored without it: absence says nothing. UNKNOWN_OPERATION ends the duty to report."""
    node.start()
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    with node.plane.state.transaction() as state:
        for table in ("operation", "log"):
            state.execute(f"DELETE FROM {table} WHERE operation_id = ?", operation)
        state.execute("UPDATE cluster SET position = position + 1000, trimmed = position + 1000 WHERE cluster_id = ?", CLUSTER)
    node.plane.restart()  # and its history is gone, so that the agent starts over from 0
    driver.wait_gone()
    report = node.plane.wait_report(operation, "CANCELLED", disposition="UNKNOWN_OPERATION")
    node.agent.wait_log("acknowledged.*j1")
    works(node)
    assert [r.sequence for r in node.plane.reports(operation, "CANCELLED")] == [report.sequence]


def test_deadline_counts_by_the_servers_clock(node, server):
    """The server's clock is an hour ahead of this node's: the deadline is as far away as it says, and the agent warns."""
    ahead = 3600 * wire.USEC
    plain = server.bookmark

    def bookmark(revision):
        message = plain(revision)
        message.bookmark.now.CopyFrom(wire.timestamp(wire.now_usec() + ahead))
        return message

    server.bookmark = bookmark
    scripted(node, server, worker_terminate_timeout="200ms", kill_retry="500ms")
    node.agent.wait_log("clock")
    driver = node.start_driver("j1")
    node.master.fault("lost", "kill", count=None)
    raw = command("op-1").SerializeToString()
    server.log.append((1, rules.cancel_event(raw, deadline=wire.now_usec() + ahead + 2 * wire.USEC)))
    server.connections[0].wake()
    report = server.wait_final("op-1")
    assert report.outcome == "DEADLINE_EXCEEDED" and driver.alive()
    assert report.metadata.kill_requests >= 1
    received = wire.from_timestamp(report.metadata.received_at)
    assert wire.from_timestamp(report.operation.modified_at) - received >= 1_500_000


def test_event_of_an_unknown_kind_is_ignored_and_its_revision_stored(node, server):
    """It is stored with the next turn that writes anyway."""
    scripted(node, server)
    driver = node.start_driver("j1")
    cancelled_at(server, server.cancel("j1"), driver)
    server.log.append((server.position + 1, b"\x7a\x03abc"))
    server.log.append((server.position + 1, b"\x7a\x03abc"))
    unknown = server.position
    other = node.start_driver("j2")
    cancelled_at(server, server.cancel("j2"), other)
    node.agent.wait_log("acknowledged.*j2")
    node.agent.restart()
    server.wait(lambda: watches(server)[1:], "the next Watch")
    assert watches(server)[1].request.after_revision > unknown


def test_bookmark_position_is_resumed_from(node, server):
    """A Bookmark's revision is the position too, stored with the next turn that writes."""
    scripted(node, server)
    watch = server.wait(lambda: server.connections and server.connections[0].watches, "the stream")[0]
    driver = node.start_driver("j1")
    operation, event = server.new_command("j1")
    watch.connection.do(lambda: [watch.data(frame(message)) for message in (
        server.bookmark(41), wire.with_revision(42, event), server.bookmark(57))])
    cancelled_at(server, operation, driver)
    other = node.start_driver("j2")
    second, event = server.new_command("j2")
    watch.connection.do(lambda: watch.data(frame(wire.with_revision(58, event))))
    cancelled_at(server, second, other)
    node.agent.wait_log("acknowledged.*j2")
    node.agent.restart()
    server.wait(lambda: watches(server)[1:], "the next Watch")
    assert watches(server)[1].request.after_revision == 58


def test_aborted_waits_for_reconnect_max(node, server):
    """Another agent has the name: no fight over it. It is told once as what it is."""
    calls = server.misbehave("Watch", lambda call: call.trailers_only(10, "taken"), 3)
    scripted(node, server, reconnect_min="10ms", reconnect_max="400ms")
    server.wait_script("Watch")
    node.agent.wait_log("another agent calls itself n1")
    driver = node.start_driver("j1")
    cancelled_at(server, server.cancel("j1"), driver)
    times = [call.at for call in calls] + [watches(server)[3].at]
    assert all(later - earlier >= 0.4 for earlier, later in zip(times, times[1:])), times


def test_pushback_of_watch_is_honoured(node, server):
    calls = server.misbehave("Watch", lambda call: call.trailers_only(14, "busy", ("grpc-retry-pushback-ms", "600")), 2)
    scripted(node, server, reconnect_min="10ms", reconnect_max="5s")
    server.wait_script("Watch")
    driver = node.start_driver("j1")
    cancelled_at(server, server.cancel("j1"), driver)
    times = [call.at for call in calls] + [watches(server)[2].at]
    assert all(later - earlier >= 0.6 for earlier, later in zip(times, times[1:])), times


def test_instance_id_is_new_at_each_start(node):
    node.start()
    first = node.plane.streams("n1")[0].instance_id
    node.agent.stop()
    node.plane.wait(lambda: not node.plane.streams("n1"), LIMIT, "the end of the stream")
    node.agent.start()
    assert node.plane.wait_watching("n1")[0].instance_id not in ("", first)


def test_withdrawn_before_a_kill_was_sent(node):
    """The driver is found, but no master has confirmed its place yet: done, without a report."""
    node.start()
    driver = node.run_job("j1")
    node.master.mode = "STANDBY"
    operation = node.cancel("j1")
    node.agent.wait_log("driver found.*j1")  # a status question alone may be the control plane's
    node.plane.withdraw(operation)
    node.agent.wait_log("withdrawn.*j1")
    node.master.mode = "ALIVE"
    works(node, "j2")
    assert driver.alive() and not driver.kills and not node.plane.reports(operation)


def test_withdrawn_is_remembered_over_a_restart(node):
    """An id that was not known: a late command under it is not acted on, whoever has restarted meanwhile."""
    node.start()
    driver = node.run_job("j1")
    node.plane.inject(rules.withdrawn_event("op-1"))
    works(node, "j2")
    node.agent.restart()
    node.plane.wait_watching("n1")
    node.plane.inject(rules.cancel_event(command("op-1").SerializeToString()))
    works(node, "j3")
    assert driver.alive() and not driver.kills and not node.plane.reports("op-1")


def test_stored_final_report_stays_a_duty_when_the_operation_is_withdrawn(node):
    node.start()
    driver = node.run_job("j1")
    fault = node.plane.faults.add("report", "status", code="UNAVAILABLE", times=0)
    operation = node.cancel("j1")
    driver.wait_gone()
    node.agent.wait_log("outcome CANCELLED")
    until(lambda: fault.hits, "a report")
    node.plane.withdraw(operation)
    node.agent.kill()
    node.plane.faults.clear()
    node.agent.start()
    node.plane.wait_report(operation, "CANCELLED", disposition="SUPERSEDED")
    node.agent.wait_log("acknowledged.*j1")


# ---- 5. The command

def test_command_without_a_deadline_takes_the_default(node):
    node.start(agent={"default_deadline": "1s", "worker_terminate_timeout": "100ms", "kill_retry": "300ms"})
    driver = node.run_job("j1")
    node.master.fault("lost", "kill", count=None)
    node.plane.inject_cancel(command("op-1"), job_id="j1", deadline=0)
    node.plane.wait_report("op-1", "DEADLINE_EXCEEDED")
    assert driver.alive()


def test_deadline_past_at_arrival_and_no_driver_here(node):
    """Nothing is reported."""
    node.start()
    node.plane.inject(rules.cancel_event(command("late").SerializeToString(), deadline=wire.now_usec() - 1000))
    works(node, "j2")
    driver = node.run_job("j1")
    works(node, "j3")
    assert driver.alive() and not driver.kills and not node.plane.reports("late")


def test_broken_copy_of_a_stored_command_is_a_duplicate(node):
    """It does not turn a sound cancel into an INVALID_COMMAND, neither while it is open nor afterwards."""
    node.start()
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    broken = rules.cancel_event(command(operation, "j" * 51).SerializeToString())
    node.plane.inject(broken)
    node.wait_cancelled(operation, driver)
    node.plane.inject(broken)
    node.plane.wait_report(operation, "CANCELLED", disposition="ALREADY_APPLIED")
    assert not node.plane.reports(operation, "INVALID_COMMAND")


@pytest.mark.parametrize("job_id, shown", [
    ("j" * 60, "j" * 50), ("a\nb", r"a\x0Ab"), ("j 1", "j 1"), ("n\0l", r"n\x00l"), ("caf\u00e9", "caf\u00e9")])
def test_ids_that_break_their_limits_are_shown_escaped_and_cut(node, job_id, shown):
    node.start()
    node.plane.inject_cancel(command("op-1", job_id), job_id="j1")
    metadata = node.plane.wait_report("op-1", "INVALID_COMMAND").metadata
    assert metadata.job_id == shown and metadata.cluster_id == CLUSTER and metadata.message


def test_ids_that_are_no_utf8_are_shown_empty(node):
    node.start()
    metadata = {"type_url": "type.googleapis.com/yandex.cloud.spark.v1.CreateJobMetadata", "value": b"\x0a\x02c1\x12\x02\xff\xfe"}
    node.plane.inject_cancel(command("op-1", metadata=metadata), job_id="j1")
    assert node.plane.wait_report("op-1", "INVALID_COMMAND").metadata.job_id == ""


def test_oversize_operation_is_reported_by_its_id_alone(node):
    """Its bytes are not kept, so that memory stays bounded."""
    node.start()
    raw = wire.Operation(id="op-1", description="x" * 17000, created_by="alice",
                         metadata=wire.pack(wire.CreateJobMetadata(cluster_id=CLUSTER, job_id="j1"))).SerializeToString()
    node.plane.inject_cancel(raw, job_id="j1")
    report = node.plane.wait_report("op-1", "INVALID_COMMAND")
    assert report.operation.id == "op-1" and not report.operation.description and not report.operation.created_by
    assert len(report.raw) < 4096


def test_operation_of_16_kib_is_taken(node):
    """The limit itself is allowed."""
    node.start()
    driver = node.run_job("j1")
    raw = command("op-1").SerializeToString()
    padding = 16384 - len(raw) - 6
    raw += b"\xba\x3e" + wire.varint(padding) + b"x" * padding  # a field that nobody knows
    raw += b"\xc0\x3e\x01" * ((16384 - len(raw)) // 3)
    assert 16380 <= len(raw) <= 16384
    node.plane.inject_cancel(raw, job_id="j1")
    node.plane.wait_report("op-1", "CANCELLED", disposition="APPLIED")
    assert not driver.alive()


# ---- 6. Who acts

def test_directory_alone_proves_nothing(node):
    """The job's owner can write it: a stderr header with the job's id, a driver id that Spark places here, no process."""
    node.start()
    driver_id = node.next_driver_id()
    (node.work / driver_id).mkdir()
    (node.work / driver_id / "stderr").write_text(
        'Launch Command: "java" "-Dspark.yandex.job.id=j1" "org.apache.spark.deploy.worker.DriverWrapper"\n' + "=" * 40 + "\n")
    node.cluster.add_driver(driver_id, state="FINISHED")
    node.plane.add_job("j1")
    operation = node.cancel("j1")
    assert node.wait_done(operation).error.code == 5
    assert [r.outcome for r in node.plane.reports(operation)] == ["NOT_ON_NODE"]
    assert not node.master.requests_for("kill")


def test_driver_named_by_the_command_without_a_process(node):
    """A directory of that name here, and Spark names this node's Worker (the jar is on its way): killed by its id."""
    node.start(plane={"send_driver_id": True})
    driver_id = node.next_driver_id()
    (node.work / driver_id).mkdir()
    node.cluster.add_driver(driver_id)
    node.plane.add_job("j1", driver_id)
    operation = node.cancel("j1")
    assert node.job_of(node.wait_done(operation)).status == Job.CANCELLED
    metadata = node.final(operation).metadata
    assert metadata.driver_id == driver_id and metadata.driver_state == "KILLED" and metadata.kill_requests == 1


def test_driver_named_by_the_command_that_spark_places_elsewhere(node):
    """A directory is left from an earlier life here: not this node's to kill."""
    node.start(plane={"send_driver_id": True, "deadline_grace": 0.5})
    driver_id = node.next_driver_id()
    (node.work / driver_id).mkdir()
    node.cluster.add_driver(driver_id, worker_host_port="192.0.2.7:7078")
    node.plane.add_job("j1", driver_id)
    operation = node.cancel("j1", deadline=1.5)
    node.plane.wait_report(operation, "NOT_ON_NODE")
    assert node.wait_done(operation).error.code == 4
    assert not node.master.requests_for("kill") and not node.finals(operation)


def test_driver_of_the_process_counts_and_both_are_logged(node):
    node.start()
    driver, victim = node.run_job("j1"), node.run_job("j2")
    node.plane.inject_cancel(command("op-1"), job_id="j1", driver_id=victim.id)
    node.plane.wait_done("op-1")
    line = node.agent.wait_log("the process counts")
    assert driver.id in line and victim.id in line
    assert not driver.alive() and victim.alive()


def test_not_on_node_again_only_when_spark_relaunched_the_driver_elsewhere(node):
    """It was here and was being killed; Spark says RELAUNCHING and it does not come back here: the search goes on."""
    node.start(agent={"relaunch_window": "1s"}, plane={"deadline_grace": 0.5, "not_found_grace": 600.0})
    driver = node.run_job("j1", supervised=True, exit_state="RELAUNCHING")
    node.master.fault("status", "kill", count=None, code=503)
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    driver.process.exit(1)
    report = node.plane.wait_report(operation, "NOT_ON_NODE")
    assert report.metadata.driver_state == "RELAUNCHING"
    node.plane.withdraw(operation)
    node.agent.wait_log("withdrawn.*j1")
    assert [r.outcome for r in node.plane.reports(operation)] == ["IN_PROGRESS", "NOT_ON_NODE"]


# ---- 7. Report

def test_type_url_is_read_behind_its_last_slash(node):
    """Another prefix is the same type; what the agent sends has the usual one."""
    node.start()
    driver = node.run_job("j1")
    metadata = wire.pack(wire.CreateJobMetadata(cluster_id=CLUSTER, job_id="j1"))
    metadata.type_url = "types.example.com/some/where/yandex.cloud.spark.v1.CreateJobMetadata"
    node.plane.inject_cancel(command("op-1", metadata=metadata), job_id="j1")
    report = node.plane.wait_report("op-1", "CANCELLED")
    assert not driver.alive()
    assert report.operation.metadata.type_url == "type.googleapis.com/sparkcancel.agent.v1.CancelJobMetadata"
    assert report.operation.response.type_url == "type.googleapis.com/yandex.cloud.spark.v1.Job"


def test_sequence_goes_on_over_restarts_and_from_a_fresh_store(node):
    """It grows with each report of an operation; a node that lost its store begins at its creation time in microseconds."""
    node.start()
    driver = node.run_job("j1")
    node.master.mode = "STANDBY"  # nothing can be killed
    started = wire.now_usec()
    operation = node.cancel("j1")
    node.master.wait_request("status", driver.id, timeout=LIMIT)
    node.agent.kill()
    for file in node.agent.keys["state_directory"].iterdir():
        file.unlink()
    node.agent.start()
    node.master.mode = "ALIVE"
    node.wait_cancelled(operation, driver)
    sequences = [r.sequence for r in node.plane.reports(operation)]
    assert sequences == sorted(set(sequences)) and started < sequences[0] <= wire.now_usec()


def test_rejected_progress_report_is_dropped(node):
    """No quarantine: the final report goes its way."""
    node.start()
    driver = node.run_job("j1", sigterm="ignore")
    fault = node.plane.faults.add("report", "reject", times=1)
    operation = node.cancel("j1")
    node.wait_cancelled(operation, driver)
    assert fault.hits == 1 and [r.outcome for r in node.plane.reports(operation, disposition="APPLIED")] == ["CANCELLED"]
    assert "quarantin" not in node.agent.log().lower()


@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", "RESOURCE_EXHAUSTED"])
def test_a_report_on_which_the_server_chokes_holds_up_no_other(node, code):
    """Three times for one batch: split; the lone one goes on alone, and is delivered when the server can take it."""
    node.start(agent={"reconnect_max": "100ms"})
    drivers = [node.run_job(f"j{number}") for number in range(4)]
    node.plane.faults.add("report", "status", code="UNAVAILABLE", times=4)  # so that they gather in one batch
    operations = [node.cancel(f"j{number}") for number in range(4)]
    node.plane.faults.add("report", "poison", operation=operations[0], code=code, times=0)
    for operation, driver in list(zip(operations, drivers))[1:]:
        node.wait_cancelled(operation, driver)
    assert not node.plane.operation(operations[0]).done
    node.plane.faults.clear()
    node.wait_cancelled(operations[0], drivers[0])


def test_a_batch_has_at_most_256_reports_each_of_another_operation(node, server):
    """What gathered while the server refused goes out in full batches, one report of each operation."""
    refused = []

    def busy_twice(call):
        refused.append(call)
        call.trailers_only(14, "busy") if len(refused) <= 2 else call.behave()

    server.misbehave("Report", busy_twice, 1)  # no final report comes, so it stays to the end
    scripted(node, server, reconnect_min="300ms", reconnect_max="300ms")
    wanted = {server.cancel(f"j{number}") for number in range(600)}
    server.wait(lambda: {name for name, _ in server.applied} >= wanted, "the reports")
    batches = [[report.id for report in call.reports] for call in server.calls if call.method == "Report"]
    assert max(map(len, batches)) == 256 and all(len(set(batch)) == len(batch) for batch in batches)
    assert all(len(call.body) <= 1 << 20 for call in server.calls)
    assert len(server.applied) == 600


# ---- 8. Outcomes

@pytest.mark.parametrize("code, error", [(401, 7), (400, 9), (405, 9), (414, 9), (431, 9), (468, 9), (302, 9)])
def test_spark_refused_by_status(node, code, error):
    """Refused for good, in rounds spread over twice kill_retry; a redirect is not followed."""
    node.start(agent={"worker_terminate_timeout": "100ms", "kill_retry": "300ms"})
    driver = node.run_job("j1")
    elsewhere = node.add_master()
    arguments = {"location": elsewhere.url + "/v1/submissions/"} if code == 302 else {}
    node.master.fault("status", None, count=None, code=code, **arguments)
    operation = node.cancel("j1")
    assert node.wait_done(operation).error.code == error
    metadata = node.final(operation).metadata
    assert node.final(operation).outcome == "SPARK_REFUSED" and driver.alive() and metadata.message
    assert len(node.master.requests) >= 2 and not elsewhere.requests_for("kill")
    times = [request.time for request in node.master.requests if request.route in ("status", "kill")]
    assert times[-1] - times[0] >= 0.5


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503])
def test_busy_master_means_the_next_one_then_back_off(node, code):
    """It says nothing for good: the second master is asked, and without one the first again."""
    node.start(masters=("ALIVE", "ALIVE"))
    node.masters[0].fault("status", None, count=None, code=code)
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)
    node.masters[1].fault("status", None, count=3, code=code)
    other = node.run_job("j2")
    node.wait_cancelled(node.cancel("j2"), other)


def test_silent_master_leaves_a_refusal_open_to_the_deadline(node):
    """One refuses, the other does not answer: it may be the one that would have done it."""
    node.start(agent={"worker_terminate_timeout": "100ms", "kill_retry": "300ms", "request_timeout": "100ms"},
               masters=("ALIVE", "ALIVE"))
    node.masters[0].fault("status", None, count=None, code=403)
    node.masters[1].fault("hang", None, count=None)
    driver = node.run_job("j1")
    operation = node.cancel("j1", deadline=2)
    assert node.wait_done(operation).error.code == 14
    assert node.final(operation).outcome == "SPARK_UNREACHABLE" and driver.alive()


def test_error_with_the_process_proved_gone_is_already_failed(node):
    node.start(plane={"send_driver_id": True, "poll": 3600})
    driver = node.run_job("j1", exit_state="ERROR")
    driver.process.exit(1)
    node.cluster.wait_state(driver.id, "ERROR")
    operation = node.cancel("j1")
    assert node.job_of(node.wait_done(operation)).status == Job.ERROR
    assert node.final(operation).outcome == "ALREADY_FAILED"


def test_error_is_no_proof_of_death(node):
    """Spark has given up the Worker, and the process lives: the deadline's outcome, not DRIVER_SURVIVED."""
    node.start(agent={"worker_terminate_timeout": "100ms", "kill_retry": "300ms"})
    driver = node.run_job("j1")
    node.cluster.on_kill = lambda record: node.cluster.set_state(record.id, "ERROR")
    operation = node.cancel("j1", deadline=1.5)
    assert node.wait_done(operation).error.code == 4
    assert node.final(operation).outcome == "DEADLINE_EXCEEDED" and driver.alive()


def test_already_finished_is_no_refusal_while_the_process_lives(node):
    """Asked again each kill_retry: a master that forgot the driver for a while knows it later."""
    node.start(agent={"worker_terminate_timeout": "100ms", "kill_retry": "300ms"})
    driver = node.run_job("j1")
    body = (b'{"action":"KillSubmissionResponse","message":"Driver %s has already finished or does not exist",'
            b'"serverSparkVersion":"3.5.9","submissionId":"%s","success":false}' % (driver.id.encode(), driver.id.encode()))
    node.master.fault("body", "kill", count=3, body=body)
    metadata = node.wait_cancelled(node.cancel("j1"), driver)
    assert metadata.kill_requests == 4


def test_kill_whose_answer_was_lost_does_not_count_as_accepted(node):
    """It ended by itself with 0: ALREADY_DONE, and the message names the kill."""
    node.start(agent={"kill_retry": "20s"})
    driver = node.run_job("j1", exit_state="FINISHED")
    node.master.fault("close", "kill", count=None)
    operation = node.cancel("j1")
    node.master.wait_request("kill", driver.id, timeout=LIMIT)
    driver.process.exit(0)
    node.wait_done(operation)
    report = node.final(operation)
    assert report.outcome == "ALREADY_DONE" and not report.metadata.HasField("kill_accepted_at")
    assert "kill" in report.metadata.message.lower() and report.metadata.kill_requests >= 1


def test_end_of_the_process_is_told_in_an_error_too(node):
    """No master answers to the deadline, but the process ended meanwhile."""
    node.start()
    driver = node.run_job("j1")
    node.master.stop()
    operation = node.cancel("j1", deadline=2)
    node.agent.wait_log("driver found.*j1")
    driver.process.exit(0)
    assert node.wait_done(operation).error.code == 14
    report = node.final(operation)
    assert report.outcome == "SPARK_UNREACHABLE" and report.metadata.HasField("ended_at")


def test_error_tells_what_to_do_and_carries_error_info(node):
    node.start(agent={"worker_terminate_timeout": "100ms", "kill_retry": "300ms"})
    node.run_job("j1")
    node.master.fault("status", None, count=None, code=403)
    error = node.wait_done(node.cancel("j1")).error
    info = wire.unpack(error.details[0], wire.error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("SPARK_REFUSED", "spark-cancel-agent") and error.message
    assert agent_pb2.Outcome.Value(info.reason)


# ---- 10. Transport

def test_one_connection_carries_the_stream_and_the_calls(node, server):
    scripted(node, server)
    for job_id in ("j1", "j2", "j3"):
        driver = node.start_driver(job_id)
        cancelled_at(server, server.cancel(job_id), driver)
    assert len(server.connects) == 1 and len({call.connection for call in server.calls}) == 1
