"""Attempts that contend for a run and are paused at random instants: one finishes it, the others stop."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack

import numpy as np

from job import events
from job.checks.child import Child, named
from job.checks.compare import Result, require_same
from job.checks.laboratory import Laboratory
from job.errors import FencedError, JobError
from job.run import layout
from job.run.manifests import KEPT
from job.store import Store

CONTENDERS = 2
LONGEST_PAUSE_SECONDS = 0.3
LONGEST_GAP_SECONDS = 0.2


def prove_pauses(lab: Laboratory, reference: Result, count: int, seed: int) -> int:
    """Pause attempts `count` times and compare what their runs end with; return the number of runs.

    Each run has CONTENDERS attempts at once. Raises JobError where one does not end as the undisturbed run,
    leaves more than it may, or has an attempt with another exit code.
    """
    generator, done, runs = np.random.default_rng(seed), 0, 0
    while done < count:
        runs += 1
        run = f"paused-{runs}"
        with ExitStack() as stack:
            children = [stack.enter_context(lab.attempt(run)) for _ in range(CONTENDERS)]
            children[0].until(named("data"))  # until then there is nothing but imports
            done += _pause(children, count - done, generator)
            codes = [child.end() for child in children]
        if 0 not in codes or not set(codes) <= {0, FencedError.exit_code}:
            causes = "; ".join(child.last_words() for child in children)
            raise JobError(f"the attempts at {run!r} that were paused ended with {codes}: {causes}")
        require_same(reference, lab.result(run), run)
        require_bounded(lab.store(run), CONTENDERS)
        events.emit("pauses", number=done, of=count, run=run, exit_codes=codes)
    return runs


def require_bounded(store: Store, fenced: int = 0) -> None:
    """Raise JobError where a finished run has left more checkpoints than are kept.

    `fenced` attempts may each have been writing one when another attempt finished the run.
    """
    objects, manifests = (len(store.list(folder)) for folder in (layout.OBJECTS, layout.MANIFESTS))
    most = (1 + fenced) * len(layout.OUTPUTS) + KEPT - 1  # a state is one object, a finished run these
    if objects > most or manifests > KEPT + fenced:
        raise JobError(f"{store.uri} keeps {manifests} manifests and {objects} objects, which are too many")


def _pause(children: list[Child], count: int, generator: np.random.Generator) -> int:
    """Pause running children, one at a time, `count` times or until all have ended; return how many times."""
    done = 0
    while done < count and (running := [child for child in children if child.running()]):
        child = running[generator.integers(len(running))]
        child.signal(signal.SIGSTOP)
        time.sleep(LONGEST_PAUSE_SECONDS * generator.random())
        child.signal(signal.SIGCONT)
        done += 1
        time.sleep(LONGEST_GAP_SECONDS * generator.random())
    return done
