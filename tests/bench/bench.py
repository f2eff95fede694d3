#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""
bench: what the agent costs and how fast it is: `make bench`

Prints a table and writes build/bench.json. Counts and medians with their spread, all of one run: single times say
little on a machine that does other things, too. Ends by itself within five minutes.

    BENCH_QUICK=1   less of everything, under a minute; a missed goal is a failure (exit code 1)
    BENCH_SPARK=1   also against `spark-submit --kill` on a real Spark; 0: not. Default: when Spark has been fetched
                    already, and not with BENCH_QUICK=1
"""
import os
import pathlib
import platform
import signal
import sys
import tempfile
import time
import traceback

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import figures  # noqa: E402
import parts  # noqa: E402
import peer  # noqa: E402

LIMIT = 290  # seconds, for all of it
PEER_NEEDS = 75  # seconds that must be left for Spark
QUICK = os.environ.get("BENCH_QUICK") == "1"


def machine():
    model = "unknown"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = figures.fields("/proc/meminfo")["MemTotal"] / 1024**2
    return {"kernel": platform.release(), "processor": model, "processors": os.cpu_count(), "memory_gib": round(memory, 1),
            "load_1min_begin": round(os.getloadavg()[0], 2), "sanitized": parts.sanitized(), "quick": QUICK}


def plan(directory):
    yield lambda: parts.binary(directory)
    yield lambda: parts.one_cancel(40 if QUICK else 200)
    yield lambda: parts.system_calls(5 if QUICK else 20)
    yield lambda: parts.burst(0)
    yield lambda: parts.burst(20)
    if not QUICK:
        yield lambda: parts.burst(0, at_once=False)
    yield lambda: parts.idle(10 if QUICK else 60)


def run(directory, begin):
    found, checks = [], []

    def keep(part, more):
        found.append(part)
        checks.extend(more)
        print(part.table(), flush=True)

    for step in plan(directory):
        keep(*step())
    wanted = os.environ.get("BENCH_SPARK") or ("0" if QUICK else "auto")
    rest = LIMIT - (time.monotonic() - begin)
    if wanted == "0" or wanted == "auto" and not peer.fetched():
        print("(spark-submit --kill left out: BENCH_SPARK=1 fetches Spark)\n")
    elif rest < PEER_NEEDS:
        print(f"(spark-submit --kill left out: only {rest:.0f} s are left)\n")
    else:
        try:
            keep(*peer.compare(directory, time.monotonic() + rest - 25))
        except (TimeoutError, peer.spark.Failure) as failure:  # the machine is too busy for a Spark
            if wanted != "auto":
                raise
            print(f"(spark-submit --kill left out: {failure})\n")
    return found, checks


def too_long(*_):
    raise TimeoutError(f"not done within {LIMIT} s")


def main():
    if os.geteuid() != 0:
        sys.exit("bench: run it as root: the memory of the agent is closed to others (docs/security.md)")
    begin, about = time.monotonic(), machine()
    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.alarm(LIMIT)
    print(f"{about['processors']} x {about['processor']}, {about['memory_gib']} GiB, Linux {about['kernel']}; "
          f"load {about['load_1min_begin']} at the begin\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="sca-bench-") as name:
        try:
            found, checks = run(pathlib.Path(name), begin)
        except Exception:  # pylint: disable=broad-except
            traceback.print_exc()
            return 1
        finally:
            signal.alarm(0)
    about["load_1min_end"] = round(os.getloadavg()[0], 2)
    about["seconds"] = round(time.monotonic() - begin, 1)
    print("## Goals\n")
    for goal, met in checks:
        print(f"{'met   ' if met else 'MISSED'}  {goal}")
    path = parts.harness.BUILD / "bench.json"
    figures.write_json(path, found, about, checks)
    missed = sum(not met for _, met in checks)
    print(f"\nbench: {len(found)} parts in {about['seconds']:.0f} s; {missed} of {len(checks)} goals missed; figures in {path}")
    return 1 if QUICK and not all(met for _, met in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
