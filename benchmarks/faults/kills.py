"""Kill anywhere: stages that are killed at random points and run again end as if never killed."""

from __future__ import annotations

import math
import random
import signal
from typing import NamedTuple

from benchmarks.faults.children import Broken, Ended
from benchmarks.faults.lab import Lab

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_LONGEST = 10.0
"""Seconds that an interrupted command has to end."""


class Kill(NamedTuple):
    """One kill, and why it was not survived, if it was not."""

    stage: str
    signal: str
    seconds: float
    problem: str = ""

    @property
    def outcome(self) -> str:
        """In a word."""
        return "BROKEN" if self.problem else "identical"


def kill_flow(lab: Lab, seed: int, kills: int, thorough: bool) -> list[Kill]:
    """Run the flow once, killing its stages ``kills`` times in all, and compare what it gives.

    Parameters
    ----------
    thorough : where the store of MLflow is made anew, and where one command in ten is an
        interpreter of its own, these are killed, too; and the first stage, which takes longest.
    """
    rng, seconds = random.Random(seed), lab.prepare()  # noqa: S311  # no secret
    done: list[Kill] = []
    stages = lab.stages if thorough else lab.stages[1:]
    with lab.place(stages[0]) as folder:
        if thorough and rng.random() < 0.5:
            (folder / "artifacts" / "mlflow.db").unlink()
        for position, stage in enumerate(stages):
            # A third more than its part, since some of the later stages end before they are struck.
            remaining = kills - len(done)
            share = min(remaining, math.ceil(4 / 3 * remaining / (len(stages) - position)))
            struck: list[Kill] = []
            problem = ""
            try:
                while len(struck) < share:
                    sent = SIGNALS[(seed + position + len(struck)) % len(SIGNALS)]
                    delay = rng.uniform(0.0, seconds[stage])
                    fresh = thorough and rng.random() < 0.1
                    child = lab.start(folder, stage, fresh=fresh)
                    if child.ends_within_work(delay + fresh * rng.uniform(0.0, 8.0)):
                        child.wait().need_success()
                        break
                    child.kill(sent)
                    struck.append(Kill(stage, sent.name, delay))
                    _need_orderly_end(child.wait(_LONGEST), sent)
                else:
                    lab.run(folder, stage).need_success()
                lab.check(folder, stage)
            except Broken as broken:
                problem = str(broken)
            done += [kill._replace(problem=problem) for kill in struck]
            if problem:
                break
    return done


def _need_orderly_end(ended: Ended, sent: signal.Signals) -> None:
    """Raise unless an interrupted command said so, or was interrupted before ``main``."""
    if sent == signal.SIGKILL or ended.status in {0, -sent}:
        return
    ended.need_no_traceback()
    if ended.status != 128 + sent:
        raise Broken(f"{sent.name} ends it with status {ended.status}: {ended.line}")
