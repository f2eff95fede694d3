# SPDX-License-Identifier: Apache-2.0
"""
kills: power cuts of the process at random moments

A round is a handful of cancels in different stages, by a seed: drivers that die at once, slowly, only by SIGKILL, that exit 0,
that come later, that end by themselves; dry runs; jobs that are nowhere; cancels that are withdrawn; masters that lose a
kill or its answer; reports whose answer is lost. While they go on the agent is killed (-9) over and over, also while it
starts. Then it is left alone, and the judge looks.
"""
import random
import signal
import time

import harness
from world import World

CUTS_IN_ROUND = (8, 22)
DEATHS = {"dies": "die", "slow": "120", "deaf": "ignore"}
KINDS = [*DEATHS, "exits0", "late", "ends", "dry", "nowhere", "withdrawn"]
ENDS = {0: ("FINISHED", "ALREADY_DONE"), 3: ("FAILED", "ALREADY_FAILED")}


class Job:
    """One cancel of a round."""

    def __init__(self, world, kind, dice):
        self.world, self.kind, self.dice = world, kind, dice
        self.id = world.name(kind)
        self.driver = None
        self.after = dice.randrange(1, 6)  # cuts until something happens to it
        self.code = dice.choice(list(ENDS))
        if kind in ("late", "withdrawn"):
            world.plane.add_job(self.id, status="PENDING")
        elif kind == "nowhere":
            world.plane.add_job(self.id)
        else:
            record = {"killed_state": "FINISHED"} if kind == "exits0" else {}
            if kind == "ends":
                record = {"exit_state": ENDS[self.code][0]}
            self.driver = world.run_job(self.id, sigterm="exit0" if kind == "exits0" else DEATHS.get(kind, "die"), **record)
        self.operation = world.plane.cancel(self.id, dry_run=kind == "dry").id

    def done(self):
        return self.world.plane.operation(self.operation).done

    def cut(self):
        """The agent was killed once more."""
        self.after -= 1
        if self.after == 0:
            self.happen()

    def happen(self):
        if self.kind == "late" and self.driver is None:
            self.driver = self.world.node.start_driver(self.id)
        if self.kind == "ends" and self.driver.alive():
            self.driver.process.exit(self.code)
        if self.kind == "withdrawn" and not self.done():
            self.world.plane.withdraw(self.operation)

    def judge(self):
        if self.kind in ("nowhere", "withdrawn"):
            wrong = [] if self.done() else [f"{self.kind} {self.operation} has no outcome"]
            return wrong + [f"{self.kind} {self.operation}: {r}" for r in self.world.node.finals(self.operation)]
        if self.kind == "ends" and self.done() and not self.world.node.finals(self.operation):
            return []  # it ended before the agent saw it: the control plane ended the operation by Spark's record
        allowed = {"dry": ("DRY_RUN",), "exits0": ("CANCELLED", "ALREADY_DONE"), "ends": ("CANCELLED", ENDS[self.code][1])}
        wrong = self.world.judge_operation(self.operation, self.driver, allowed.get(self.kind, ("CANCELLED",)))
        if self.kind == "dry":
            if not self.driver.alive() or self.driver.kills:
                wrong.append(f"a dry run touched {self.driver.id}")
            self.driver.process.kill()
        elif self.driver.alive():
            wrong.append(f"{self.operation} ended and its driver lives")
        return wrong


class Kills:
    def __init__(self, seed, world=None):
        self.dice = random.Random(seed)
        self.world = world or World(kills_per_worker=self.dice.choice([1, 4]))
        self.cuts = self.operations = self.rounds = 0

    def close(self):
        self.world.close()

    def round(self):
        """-> what is wrong"""
        world, dice = self.world, self.dice
        start, wrong = world.mark(), []
        jobs = [Job(world, dice.choice(KINDS), dice) for _ in range(dice.randrange(4, 9))]
        if not any(job.kind in ("dies", "slow", "deaf") for job in jobs):
            jobs.append(Job(world, "slow", dice))
        self._disturb()
        for _ in range(dice.randrange(*CUTS_IN_ROUND)):
            life = world.start()
            self._pause(life)
            if life.ended():
                wrong.append(f"the agent ended with {life.wait()} by itself")
            else:
                life.kill()
            self.cuts += 1
            for job in jobs:
                job.cut()
            if all(job.done() for job in jobs):
                break
        for job in jobs:
            job.happen()
        world.node.master.clear_faults()
        world.plane.faults.clear()
        wrong += self._rest(jobs)
        self.rounds += 1
        self.operations += len(jobs)
        wrong += [text for job in jobs for text in job.judge()] + world.judge_world(start)
        self.said = world.said(start) if wrong else ""
        return wrong

    def _disturb(self):
        dice, node = self.dice, self.world.node
        if dice.random() < 0.3:
            node.master.fault(dice.choice(["lost", "hang", "unanswered", "reset"]), "kill", count=dice.randrange(1, 4))
        if dice.random() < 0.2:
            node.master.fault("status", "status", count=dice.randrange(1, 4), code=503)
        if dice.random() < 0.3:
            node.plane.faults.add("report", dice.choice(["lost", "status"]), code="UNAVAILABLE", times=dice.randrange(1, 4))

    def _pause(self, life):
        """A moment of its life: while it starts, while it works, or when a peer has just heard from it."""
        dice, world = self.dice, self.world
        way = dice.randrange(5)
        if way == 0:
            life.ended(dice.uniform(0, 0.03))
        elif way == 1:
            life.ended(dice.uniform(0.02, 0.12))
        elif way == 2:
            life.ended(dice.uniform(0.05, 0.5))
        else:
            before = len(world.node.master.requests) if way == 3 else len(world.plane.reports())
            end = time.monotonic() + 0.5
            while time.monotonic() < end and not life.ended(0.0005):
                if (len(world.node.master.requests) if way == 3 else len(world.plane.reports())) > before:
                    break
            life.ended(dice.uniform(0, 0.004))

    def _rest(self, jobs):
        """Left alone it ends every cancel."""
        world, wrong = self.world, []
        life = world.start()
        state = world.wait(life, lambda: all(job.done() for job in jobs), harness.LIMIT * 2)
        if not state:
            wrong.append("the agent ended by itself" if state is False else
                         f"not ended: {[(job.kind, job.operation) for job in jobs if not job.done()]}")
        life.signal(signal.SIGTERM)
        code = life.wait()
        if code not in (0, -signal.SIGTERM):  # all may have ended before, and the signal come before there is a handler
            wrong.append(f"SIGTERM: {code}")
        return wrong + world.rest()
