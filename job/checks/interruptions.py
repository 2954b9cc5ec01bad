"""Attempts that are killed at planned instants or paused at random ones, and how their runs must end."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import numpy as np

from job import events
from job.checks.child import AGENT, Child, Event, named
from job.checks.laboratory import Laboratory, Result, require_same
from job.errors import FencedError, JobError, MachineError
from job.run import layout
from job.run.manifests import KEPT
from job.store import Store

PHASES = {
    "download": ("data", 0.1),
    "training": ("checkpoint", 0.3),
    "saving": ("saving", 0.01),
    "commit": ("commit", 0.02),
    "evaluation": ("evaluate", 0.02),
    "scoring": ("score", 0.1),
    "publishing": ("publish", 0.01),
}
"""For each phase, the event that a kill waits for, and the longest delay of the kill after it in seconds."""

LATE = ("scoring", "publishing")  # once, at the end of a run

_ENTERED = {
    "data": "download",
    "resume": "training",
    "train": "training",
    "evaluate": "evaluation",
    "epoch": "training",
    "score": "scoring",
    "publish": "publishing",
}

CONTENDERS = 2
LONGEST_PAUSE_SECONDS = 0.3
LONGEST_GAP_SECONDS = 0.2


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: `delay_seconds` after the first event that opens `phase` in `epoch` (from 1) or later.

    `aim`, from 0 to 1, decides which of an attempt's processes it hits.
    """

    phase: str
    epoch: int
    delay_seconds: float
    aim: float = 0.0

    def is_due(self, event: Event) -> bool:
        """Return whether this is the event to kill at."""
        return bool(event["event"] == PHASES[self.phase][0] and event.get("epoch", math.inf) >= self.epoch)


def plan_kills(count: int, epochs: int, seed: int) -> list[Kill]:
    """Return `count` kills, the phases in turn in a random order, spread over the epochs of the run."""
    generator = np.random.default_rng(seed)
    phases = generator.permutation(list(PHASES)).tolist()
    dealt = [phases[index % len(phases)] for index in range(count)]
    early = generator.permutation([phase for phase in dealt if phase not in LATE]).tolist()
    late = sorted((phase for phase in dealt if phase in LATE), key=LATE.index)
    places = [(phase, 1 + index * (epochs - 1) // len(early)) for index, phase in enumerate(early)]
    places += [(phase, epochs) for phase in late]
    delays = [PHASES[phase][1] * generator.random() for phase, _ in places]
    aims = ((generator.permutation(count) + generator.random(count)) / count).tolist()
    return [Kill(*place, delay, aim) for place, delay, aim in zip(places, delays, aims, strict=True)]


@dataclass(frozen=True)
class Position:
    """The phase in which a process ended, and the last epoch and step that its events name."""

    phase: str = "start"
    epoch: int | None = None
    step: int | None = None

    def fields(self) -> dict[str, str | int]:
        """Return the fields that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Killed:
    """Where an attempt was when it was killed, and which of its processes was; "" is all of them."""

    where: Position
    victim: str

    def fields(self) -> dict[str, str | int]:
        """Return the fields that are known."""
        return self.where.fields() | ({"victim": self.victim} if self.victim else {})


def aimed(child: Child, aim: float) -> str:
    """Return which of an attempt's processes `aim`, from 0 to 1, means; "" is all of them, equally likely."""
    several = child.processes()
    choices = ["", *several] if len(several) > 1 else [""]
    return choices[int(aim * len(choices))]


def position(events: Sequence[Event]) -> Position:
    """Return where a process was after its last event.

    It saves and commits in another thread: those phases take precedence over training, but not over
    evaluation, the shortest phase.
    """
    phase, saving = "start", ""
    epoch = step = None
    for event in events:
        name = event["event"]
        phase = _ENTERED.get(name, phase)
        if name in ("saving", "commit"):
            saving = name
        elif name in ("checkpoint", "resume", "publish"):
            saving = ""
        epoch, step = event.get("epoch", epoch), event.get("step", step)
    return Position(phase if phase == "evaluation" else saving or phase, epoch, step)


def prove_same_bits(lab: Laboratory, reference: Result, kills: Sequence[Kill]) -> list[Killed]:
    """Carry out all `kills` on one run; return what each killed.

    If the run ends before the last kill, another run starts with the missed kill, without its delay. Raises
    JobError where a run differs from the undisturbed one or leaves too many checkpoints.
    """
    waiting, killed, runs = list(kills), list[Killed](), 0
    while waiting:
        runs += 1
        run = f"killed-{runs}"
        while waiting and (one := _kill(lab, run, waiting[0])):
            killed.append(one)
            events.emit("killed", number=len(killed), of=len(kills), **one.fields())
            del waiting[0]
        lab.finish(run)
        require_same(reference, lab.result(run), run)
        require_bounded(lab.store(run))
        if waiting and not waiting[0].delay_seconds:
            raise JobError(f"no attempt could be killed in the phase {waiting[0].phase}: none reached it")
        if waiting:
            waiting[0] = replace(waiting[0], delay_seconds=0.0)
    return killed


def prove_pauses(lab: Laboratory, reference: Result, count: int, seed: int) -> None:
    """Pause attempts `count` times and compare how their runs end with the undisturbed one.

    Each run has CONTENDERS attempts at once. Raises JobError where a run differs from the undisturbed one,
    leaves too many checkpoints, or has an attempt whose exit code is neither 0 nor 76.
    """
    generator, done, runs = np.random.default_rng(seed), 0, 0
    while done < count:
        runs += 1
        run = f"paused-{runs}"
        with ExitStack() as stack:
            children = [stack.enter_context(lab.attempt(run)) for _ in range(CONTENDERS)]
            children[0].until(named("data"))  # before it, the process only imports
            done += _pause(children, count - done, generator)
            codes = [child.end() for child in children]
        if 0 not in codes or not set(codes) <= {0, FencedError.exit_code}:
            causes = "; ".join(child.last_words() for child in children)
            raise JobError(f"the attempts at {run!r} that were paused ended with {codes}: {causes}")
        require_same(reference, lab.result(run), run)
        require_bounded(lab.store(run), CONTENDERS)
        events.emit("pauses", number=done, of=count, run=run, exit_codes=codes)


def require_bounded(store: Store, fenced: int = 0) -> None:
    """Raise JobError where a finished run has left more checkpoints than KEPT.

    Each of `fenced` attempts may have been writing one more when another attempt finished the run.
    """
    objects, manifests = (len(store.list(folder)) for folder in (layout.OBJECTS, layout.MANIFESTS))
    most = (1 + fenced) * len(layout.OUTPUTS) + KEPT - 1  # a state is one object, a finished run these
    if objects > most or manifests > KEPT + fenced:
        raise JobError(f"{store.uri} keeps {manifests} manifests and {objects} objects, which are too many")


def _kill(lab: Laboratory, run: str, kill: Kill) -> Killed | None:
    """Start an attempt, kill it and return where it was; None if it finished the run first."""
    victim, expected = "", -signal.SIGKILL
    with lab.attempt(run) as child:
        if child.until(kill.is_due):
            time.sleep(kill.delay_seconds)
            victim = aimed(child, kill.aim)
            child.signal(signal.SIGKILL, victim)
            if victim not in ("", AGENT):
                expected = MachineError.exit_code  # the agent's answer
        code = child.end()
    if code == expected:
        return Killed(position(child.events), victim)
    if code:
        raise JobError(f"an attempt on {run} ended with {code}: {child.last_words()}")
    return None


def _pause(children: list[Child], count: int, generator: np.random.Generator) -> int:
    """Pause running children or one of their processes, one at a time, until all have ended.

    Returns how often, at most `count` times.
    """
    done = 0
    while done < count and (running := [child for child in children if child.running()]):
        child = running[generator.integers(len(running))]
        paused = aimed(child, generator.random())
        child.signal(signal.SIGSTOP, paused)
        time.sleep(LONGEST_PAUSE_SECONDS * generator.random())
        child.signal(signal.SIGCONT, paused)
        done += 1
        time.sleep(LONGEST_GAP_SECONDS * generator.random())
    return done
