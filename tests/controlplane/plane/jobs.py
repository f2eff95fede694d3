# SPDX-License-Identifier: Apache-2.0
"""
jobs: CreateJobRequest checked and turned into a submission; the poller that follows Spark

A job is stored as PROVISIONING before Spark hears of it, so a crash in between leaves a job that can be cancelled rather
than a driver that nobody knows. Spark's create is not idempotent and is never repeated: where it is not known
whether a master took it, the job stays PROVISIONING and says so.
"""
import re
import threading
import urllib.parse

import grpc

from . import wire
from .masters import SparkError
from .rules import FINISHED, Refusal
from .wire import Job, Operation

JOB_ID_PROPERTY = "spark.yandex.job.id"
NAME = re.compile(r"[a-z][-a-z0-9]{1,61}[a-z0-9]\Z")
PROPERTY_KEY = re.compile(r"[a-zA-Z][-_0-9a-zA-Z.]{0,127}\Z")
RESERVED = (JOB_ID_PROPERTY, "spark.submit.deployMode")
STATUS = {"SUBMITTED": Job.PENDING, "RUNNING": Job.RUNNING, "FINISHED": Job.DONE, "FAILED": Job.ERROR, "ERROR": Job.ERROR,
          "KILLED": Job.CANCELLED}
POLL_MAX = 256  # jobs asked for in one round


def invalid(text):
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)


def check_id(name, value):
    if not value:
        raise invalid(f"{name} is required")
    if len(value) > wire.ID_MAX:
        raise invalid(f"{name} is longer than {wire.ID_MAX} characters")


def check_create(request):
    """INVALID_ARGUMENT for what breaks the published limits."""
    check_id("cluster_id", request.cluster_id)
    if request.name and not NAME.match(request.name):
        raise invalid("name must match |[a-z][-a-z0-9]{1,61}[a-z0-9]")
    kind = request.WhichOneof("job_spec")
    if kind is None:
        raise invalid("job_spec is required")
    spec = getattr(request, kind)
    for field, value in spec.ListFields():
        if field.name == "properties" or field.label != field.LABEL_REPEATED:
            continue
        if len(value) > 100 or any(len(item) >= 2048 for item in value):
            raise invalid(f"{field.name}: at most 100 elements of less than 2048 characters")
    if len(spec.properties) > 100:
        raise invalid("properties: at most 100")
    for key, value in spec.properties.items():
        if not PROPERTY_KEY.match(key) or len(value) > 256:
            raise invalid(f"properties[{key[:128]!r}]: keys match [a-zA-Z][-_0-9a-zA-Z.]* of 1-128, values have at most 256")
        if key in RESERVED:
            raise invalid(f"properties[{key!r}] is set by the service and can't be given")
    if kind == "spark_job" and (not spec.main_class or len(spec.main_class) >= 256 or not spec.main_jar_file_uri):
        raise invalid("spark_job: main_class (under 256 characters) and main_jar_file_uri are required")
    if kind == "pyspark_job" and not spec.main_python_file_uri:
        raise invalid("pyspark_job: main_python_file_uri is required")


def submission(job, spark_master):
    """A Job -> the body of Spark's CreateSubmissionRequest."""
    kind = job.WhichOneof("job_spec")
    spec = getattr(job, kind)
    properties = dict(spec.properties)
    lists = (("spark.jars", spec.jar_file_uris), ("spark.files", spec.file_uris), ("spark.archives", spec.archive_uris),
             ("spark.jars.packages", spec.packages), ("spark.jars.repositories", spec.repositories),
             ("spark.jars.excludes", spec.exclude_packages))
    properties.update({key: ",".join(values) for key, values in lists if values})
    if kind == "spark_job":
        resource, main, arguments = spec.main_jar_file_uri, spec.main_class, list(spec.args)
    elif kind == "pyspark_job":
        resource, main = "", "org.apache.spark.deploy.PythonRunner"
        arguments = [spec.main_python_file_uri, ",".join(spec.python_file_uris), *spec.args]
    else:
        resource, main, arguments = "", "org.apache.spark.sql.connect.service.SparkConnectServer", []
    properties.setdefault("spark.app.name", job.name or job.id)
    properties.setdefault("spark.master", spark_master)
    properties["spark.submit.deployMode"] = "cluster"
    properties[JOB_ID_PROPERTY] = job.id  # last: nothing that the user gave can stand above it
    return {"appResource": resource, "mainClass": main, "appArgs": arguments, "environmentVariables": {},
            "sparkProperties": properties}


def is_supervised(job):
    kind = job.WhichOneof("job_spec")
    return bool(kind) and getattr(job, kind).properties.get("spark.driver.supervise", "").lower() == "true"


def default_spark_master(urls):
    """REST masters replace their REST port by the RPC port themselves (SPARK-24794)."""
    return "spark://" + ",".join(urllib.parse.urlsplit(url).netloc for url in urls)


class Jobs:
    def __init__(self, state, options, masters):
        self.state = state
        self.options = options
        self.masters = masters
        self._stopping = threading.Event()
        self._threads = []

    def start(self):
        if self.masters.urls:
            thread = threading.Thread(target=self._poll, name="poller", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self):
        self._stopping.set()
        with self.state.lock:
            self.state.changed.notify_all()
        for thread in self._threads:
            thread.join()

    # ---- Create

    def create(self, request, who):
        """JobService.Create -> Operation, at once; it is done when Spark has taken or refused the job."""
        check_create(request)
        state = self.state
        if state.position(request.cluster_id) is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"no cluster {request.cluster_id!r}")
        if not self.masters.urls:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "this control plane was started without --masters")
        now = wire.now_usec()
        job = Job(id=wire.make_id("job"), cluster_id=request.cluster_id, created_at=wire.timestamp(now), name=request.name,
                  created_by=who, status=Job.PROVISIONING, service_account_id=request.service_account_id,
                  environment_id=request.environment_id)
        kind = request.WhichOneof("job_spec")
        getattr(job, kind).CopyFrom(getattr(request, kind))
        operation = Operation(id=wire.make_id("c9q"), description="Create Spark job", created_at=job.created_at,
                              created_by=who, modified_at=job.created_at,
                              metadata=wire.pack(wire.CreateJobMetadata(cluster_id=job.cluster_id, job_id=job.id)))
        with state.transaction():
            self.add(job)
            state.execute("INSERT INTO operation (operation_id, kind, cluster_id, job_id, operation, created)"
                          " VALUES (?, 'create', ?, ?, ?, ?)", operation.id, job.cluster_id, job.id,
                          operation.SerializeToString(), now)
        thread = threading.Thread(target=self._submit, args=(job, operation), name="submit", daemon=True)
        thread.start()
        return operation

    def add(self, job, driver_id="", supervised=None):
        """Store a job; also one that somebody else has submitted."""
        with self.state.transaction():
            self.state.execute(
                "INSERT INTO job (cluster_id, job_id, job, status, driver_id, supervised) VALUES (?, ?, ?, ?, ?, ?)",
                job.cluster_id, job.id, job.SerializeToString(), job.status, driver_id,
                int(is_supervised(job) if supervised is None else supervised))
            self.state.note(job.cluster_id, job.id, Job.Status.Name(job.status) + (f" {driver_id}" if driver_id else ""))

    def _submit(self, job, operation):
        spark_master = self.options.spark_master or default_spark_master(self.masters.urls)
        driver_id = failure = None
        try:
            driver_id = self.masters.create(submission(job, spark_master))
        except SparkError as error:
            failure = error
        with self.state.transaction():
            if driver_id is not None:
                self._set(job.cluster_id, job.id, Job.PENDING, f"submitted to Spark as {driver_id}", driver_id=driver_id)
            elif failure.sent:
                self.state.note(job.cluster_id, job.id, f"not known whether Spark took it: {failure}")
            else:
                self._set(job.cluster_id, job.id, Job.ERROR, f"ERROR {failure}")
            self._end_create(job, operation, failure)

    def _end_create(self, job, operation, failure):
        operation.done = True
        operation.modified_at.CopyFrom(wire.timestamp(wire.now_usec()))
        if failure is None:
            row = self.state.job(job.cluster_id, job.id)
            stored = Job.FromString(row["job"])
            stored.status = row["status"]
            operation.response.CopyFrom(wire.pack(stored))
        else:
            operation.error.CopyFrom(wire.error(14, "SPARK_UNREACHABLE", str(failure)))
        self.state.set_operation(operation.id, operation=operation.SerializeToString(), done=1)

    def end_interrupted(self):
        """Creates that a restart cut off: nobody knows whether Spark took them."""
        with self.state.transaction():
            for row in self.state.rows("SELECT * FROM operation WHERE kind = 'create' AND done = 0"):
                stored = self.state.job(row["cluster_id"], row["job_id"])
                failure = SparkError("the control plane was stopped while it submitted the job; it may run", sent=True)
                self.state.note(row["cluster_id"], row["job_id"], str(failure))
                self._end_create(Job.FromString(stored["job"]), Operation.FromString(row["operation"]), failure)

    # ---- following Spark

    def _set(self, cluster_id, job_id, status, text, driver_id=None):
        row = self.state.job(cluster_id, job_id)
        job = Job.FromString(row["job"])
        now = wire.timestamp(wire.now_usec())
        if status == Job.RUNNING and not job.HasField("started_at"):
            job.started_at.CopyFrom(now)
        if status in FINISHED and not job.HasField("finished_at"):
            job.finished_at.CopyFrom(now)
        self.state.set_job(cluster_id, job_id, status=status, job=job.SerializeToString())
        if driver_id is not None:
            self.state.set_job(cluster_id, job_id, driver_id=driver_id)
        self.state.note(cluster_id, job_id, text)

    def refresh(self, row, timeout=None):
        """Ask Spark for one job's driver and store its word; silent when no master answers."""
        if not row["driver_id"] or row["status"] in FINISHED or not self.masters.urls:
            return
        asked = wire.now_usec()
        try:
            word = self.masters.status(row["driver_id"], timeout)
        except SparkError:
            return
        with self.state.transaction():
            self.take_word(row["cluster_id"], row["job_id"], word, asked)

    def take_word(self, cluster_id, job_id, word, asked):
        """Spark's word for a driver. With a cancel open the job only moves forward, and never to an end."""
        row = self.state.job(cluster_id, job_id)
        if row["status"] in FINISHED:
            return
        self.state.set_job(cluster_id, job_id, spark_state=word, spark_asked=asked)
        status = STATUS.get(word)
        if status is None or status == row["status"] or (row["status"] == Job.RUNNING and status == Job.PENDING):
            return
        if status in FINISHED and (row["disputed"] or self.state.open_cancel(cluster_id, job_id, False)):
            return
        self._set(cluster_id, job_id, status, f"Spark says {word}")

    def _unfinished(self):
        return self.state.rows("SELECT * FROM job WHERE status NOT IN (?, ?, ?) AND driver_id != '' ORDER BY spark_asked, number"
                               " LIMIT ?", *FINISHED, POLL_MAX)

    def _poll(self):
        while not self._stopping.is_set():
            self.state.wait(lambda: self._stopping.is_set() or self._unfinished(), 3600)
            for row in self._unfinished():
                if self._stopping.is_set():
                    return
                self.refresh(row)
            self._stopping.wait(self.options.poll)
