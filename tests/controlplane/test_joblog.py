# SPDX-License-Identifier: Apache-2.0
"""
JobService.ListLog against a scripted Worker.
"""
import os
import pathlib
import random
import sys

import grpc
import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "integration"))

from plane import logs, state as state_module  # noqa: E402
from plane.options import Options  # noqa: E402
from plane.server import ControlPlane  # noqa: E402
from yandex.cloud.spark.v1 import job_service_pb2, job_service_pb2_grpc  # noqa: E402
import sparkmaster  # noqa: E402
from workerui import WorkerUi  # noqa: E402

LIMIT = 20
CODE = grpc.StatusCode
DRIVER = "driver-20260101000000-0001"


class World:
    def __init__(self, directory):
        self.ui = WorkerUi()
        self.master = sparkmaster.SparkMaster()
        self.master.start()
        self.options = Options(state=str(directory / "state.db"), clusters=["c1"], masters=[self.master.url],
                               master_uis=["http://127.0.0.1:1", self.ui.url], poll=3600.0, spark_timeout=5.0)
        self.plane = ControlPlane(self.options).start()
        self.channel = grpc.insecure_channel(self.plane.address)
        self.jobs = job_service_pb2_grpc.JobServiceStub(self.channel)

    def run(self, **record):
        self.master.add_driver(DRIVER, **record)
        self.plane.add_job("j1", DRIVER)

    def page(self, token="", size=0):
        return self.jobs.ListLog(job_service_pb2.ListJobLogRequest(cluster_id="c1", job_id="j1", page_size=size,
                                                                   page_token=token), timeout=LIMIT, wait_for_ready=True)

    def whole(self, size=0):
        """Page after page to the end -> the pages' contents. The job must have ended."""
        pages, token = [], ""
        while True:
            answer = self.page(token, size)
            pages.append(answer.content)
            token = answer.next_page_token
            if not token:
                return pages

    def refused(self, **request):
        with pytest.raises(grpc.RpcError) as caught:
            self.page(**request)
        return caught.value.code(), caught.value.details()

    def stop(self):
        self.channel.close()
        self.plane.stop()
        self.master.stop()
        self.ui.stop()


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "HOLD_SECONDS", 0.01)
    made = World(tmp_path)
    yield made
    made.stop()


def test_both_streams_of_a_job_that_has_ended(world):
    world.run()
    world.ui.write(DRIVER, "stdout", b"result 42\n")
    world.ui.write(DRIVER, "stderr", b"Launch Command: java\nwarning")
    world.master.set_state(DRIVER, "FINISHED")
    answer = world.page()
    assert answer.content == "==> stdout <==\nresult 42\n==> stderr <==\nLaunch Command: java\nwarning"
    assert answer.next_page_token == ""


def test_a_log_is_followed_while_the_job_runs(world):
    """Each page has what is new; a token comes as long as there may be more; the last page has none."""
    world.run()
    world.ui.write(DRIVER, "stdout", b"one\n")
    first = world.page()
    assert first.content == "==> stdout <==\none\n" and first.next_page_token
    nothing = world.page(first.next_page_token)
    assert nothing.content == "" and nothing.next_page_token == first.next_page_token
    world.ui.write(DRIVER, "stdout", b"two\n")
    second = world.page(nothing.next_page_token)
    assert second.content == "two\n"
    world.ui.write(DRIVER, "stderr", b"oops\n")
    third = world.page(second.next_page_token)
    assert third.content == "==> stderr <==\noops\n"
    world.ui.write(DRIVER, "stdout", b"three\n")
    world.master.set_state(DRIVER, "FAILED")
    last = world.page(third.next_page_token)
    assert last.content == "==> stdout <==\nthree\n" and last.next_page_token == ""


@pytest.mark.parametrize("size", [4, 5, 7, 64, 1000])
def test_pages_put_together_are_the_log(world, size):
    """No byte twice, none left out, and no character cut in two, wherever a page ends."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"SEED={seed}")
    dice = random.Random(seed)
    texts = {stream: "".join(dice.choice("ab\né€😀") for _ in range(dice.randrange(60, 200))) for stream in ("stdout", "stderr")}
    world.run()
    for stream, text in texts.items():
        world.ui.write(DRIVER, stream, text.encode())
    world.master.set_state(DRIVER, "FINISHED")
    pages = world.whole(size)
    assert all(len(page.encode()) <= size + 2 * len("\n==> stdout <==\n") for page in pages)
    whole = "".join(pages)
    assert whole.startswith("==> stdout <==\n" + texts["stdout"])
    assert whole.endswith("==> stderr <==\n" + texts["stderr"])
    assert len(whole) <= len(texts["stdout"] + texts["stderr"]) + 31


def test_bytes_that_are_no_text(world):
    """They are shown as U+FFFD, and it goes on behind them."""
    world.run()
    world.ui.write(DRIVER, "stdout", b"\xff\xfe\xff\xfe\xff\xfe-end")
    world.master.set_state(DRIVER, "FINISHED")
    assert "".join(world.whole(4)) == "==> stdout <==\n" + 6 * "\ufffd" + "-end"


def test_a_page_is_bounded(world):
    world.run()
    world.ui.write(DRIVER, "stdout", b"x" * (3 << 20))
    world.master.set_state(DRIVER, "FINISHED")
    pages = world.whole()
    assert [len(page) for page in pages] == [(1 << 20) + 15, 1 << 20, 1 << 20, 0][:len(pages)]
    assert sum(map(len, pages)) == (3 << 20) + 15


@pytest.mark.parametrize("request_", [{"size": -1}, {"size": (1 << 20) + 1}, {"token": "x"}, {"token": "1:2"}, {"token": "1:2:3"},
                                      {"token": "-1:0:"}, {"token": "0:0:stdout\n"}, {"token": "9" * 16 + ":0:"}])
def test_requests_that_are_none(world, request_):
    world.run()
    assert world.refused(**request_)[0] == CODE.INVALID_ARGUMENT


def test_a_log_that_became_shorter(world):
    """Rolled over, or another process wrote it anew: it goes on at its end."""
    world.run()
    world.ui.write(DRIVER, "stdout", b"0123456789")
    token = world.page().next_page_token
    world.ui.files[DRIVER, "stdout"] = b"abc"
    answer = world.page(token)
    assert answer.content == "" and answer.next_page_token == "3:0:stdout"


# ---- there is none

def test_a_job_that_has_not_started(world):
    """Nothing yet, and the token to go on with: first without a driver, then queued, then without a directory."""
    world.plane.add_job("j1", status="PROVISIONING")
    first = world.page()
    assert (first.content, first.next_page_token) == ("", "0:0:")
    world.plane.state.set_job("c1", "j1", driver_id=DRIVER)
    world.master.add_driver(DRIVER, state="SUBMITTED")
    assert world.page(first.next_page_token).next_page_token == "0:0:"
    world.master.cluster.place(DRIVER, None)
    assert world.page(first.next_page_token).next_page_token == "0:0:"
    world.ui.write(DRIVER, "stdout", b"begun\n")
    assert world.page(first.next_page_token).content == "==> stdout <==\nbegun\n"


def test_a_job_that_never_ran(world):
    world.master.add_driver(DRIVER, state="SUBMITTED")
    world.plane.add_job("j1", DRIVER)
    world.master.set_state(DRIVER, "KILLED")
    code, why = world.refused()
    assert code == CODE.NOT_FOUND and "never ran" in why


def test_a_job_that_spark_never_got(world):
    world.plane.add_job("j1", status="ERROR")
    code, why = world.refused()
    assert code == CODE.NOT_FOUND and "never submitted" in why


def test_the_worker_has_cleaned_up(world):
    world.run()
    world.master.set_state(DRIVER, "FINISHED")
    code, why = world.refused()
    assert code == CODE.NOT_FOUND and "invalid log directory" in why


def test_the_worker_is_away_and_comes_back_elsewhere(world):
    """UNAVAILABLE, with the address; when it is there again, on another port, its log is found."""
    world.run()
    world.ui.write(DRIVER, "stdout", b"text\n")
    assert world.page().content
    old = world.ui.url
    world.ui.stop()
    code, why = world.refused()
    assert code == CODE.UNAVAILABLE and old in why
    files, world.ui = world.ui.files, WorkerUi()
    world.ui.files = files
    world.options.master_uis[:] = [world.ui.url]
    assert world.page().content == "==> stdout <==\ntext\n"


def test_the_master_has_forgotten_the_driver(world):
    """The address was kept; also over a restart of the control plane."""
    world.run()
    world.ui.write(DRIVER, "stdout", b"text\n")
    assert world.page().content
    world.master.forget(DRIVER)
    world.plane.restart()
    assert world.page().content == "==> stdout <==\ntext\n"


def test_no_master_answers(world):
    world.run()
    world.master.stop()
    code, why = world.refused()
    assert code == CODE.UNAVAILABLE and world.master.url in why


def test_no_master_knows_the_worker(world):
    world.ui.worker_id = "worker-y"
    world.run()
    code, why = world.refused()
    assert code == CODE.UNAVAILABLE and sparkmaster.WORKER_ID in why


@pytest.mark.parametrize("body", [
    b"", b"<html>hello</html>", b"==== Bytes 0-5 of 5 of /work/driver-x/stdout ====\nother",
    f"==== Bytes 3-1 of 5 of /work/{DRIVER}/stdout ====\nx".encode(),
    f"==== Bytes 0-9999999 of 9999999 of /work/{DRIVER}/stdout ====\nx".encode()])
def test_nonsense_from_the_worker(world, body):
    """Another program on its port, or another driver's log: not passed on as this job's."""
    world.run()
    world.ui.body = body
    assert world.refused()[0] == CODE.UNAVAILABLE


def test_a_driver_id_that_is_a_path(world):
    """Spark's word goes into a URL only when it is an id."""
    world.plane.add_job("j1", "../../etc?x=")
    assert world.refused()[0] == CODE.FAILED_PRECONDITION
    assert world.ui.pages == 0


def test_without_master_uis(world):
    world.run()
    world.options.master_uis.clear()
    code, why = world.refused()
    assert code == CODE.FAILED_PRECONDITION and "--master-uis" in why


def test_a_state_file_of_the_first_schema(tmp_path):
    """It is taken over: it knows no Workers yet."""
    path = tmp_path / "old.db"
    base = state_module.connect(path)
    base.executescript(state_module.SCHEMA.replace(state_module.DRIVER_UI, "") + "PRAGMA user_version = 1;")
    base.close()
    opened = state_module.State(path, ["c1"])
    assert opened.rows("SELECT * FROM driver_ui") == []
    opened.close()
