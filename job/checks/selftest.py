"""Prove that a run survives what is done to it, in the user's own store and on the user's machine.

A small run is trained undisturbed. The same run is then trained through SIGKILLs, by attempts that contend
and are paused, past an attempt that wakes up after another has finished, from a damaged checkpoint, and while
nobody reads its log. Each must end with the first one's weights, predictions, report and history.
"""

from __future__ import annotations

import hashlib
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from job import events
from job.checks.child import Child, named
from job.checks.compare import Result, require_same
from job.checks.kills import PHASES, Kill, Place, place, plan
from job.checks.laboratory import Laboratory, laboratory
from job.checks.pauses import prove_pauses, require_bounded
from job.errors import FencedError, JobError
from job.machine.preemption import Preemption
from job.run import claims, layout
from job.store import Store, local_path

OWN = (
    f"{layout.CLAIMS}/",
    f"{layout.HEARTBEATS}/",
)  # an attempt's own, also when it is fenced
LATE_REQUEST_SECONDS = 1.0  # within which a store carries out what a killed process had asked for


@dataclass(frozen=True)
class Proof:
    """What every run ended with, the kills by phase, the pauses, and the checkpoint that was damaged."""

    weights_sha256: str
    predictions_sha256: str
    kills: Counter[str]
    pauses: int
    damaged: str


def selftest(
    uri: str, kills: int, seed: int, options: Sequence[str], keep: bool, preemption: Preemption
) -> Proof:
    """Carry out every proof under a throw-away prefix below `uri`, which is removed unless `keep`.

    There are as many pauses as `kills`; `seed` decides the instants of both. `options` of `train` name the
    device, the precision and the width. Raises JobError (exit code 1) saying what does not hold, and the
    store's errors.
    """
    epochs = 4 + kills // 2
    with laboratory(uri, epochs, options, keep, preemption) as lab:
        events.emit("selftest", prefix=lab.uri, kills=kills, seed=seed)
        lab.finish("reference")
        reference = lab.result("reference")
        places = prove_same_bits(lab, reference, plan(kills, epochs, seed))
        prove_pauses(lab, reference, kills, seed)
        prove_fence(lab, reference)
        damaged = prove_fallback(lab, reference)
        prove_unread(lab, reference)
    sha256 = {name: reference.report[name]["sha256"] for name in ("weights", "predictions")}
    phases = Counter(where.phase for where in places)
    return Proof(sha256["weights"], sha256["predictions"], phases, kills, damaged)


def prove_same_bits(lab: Laboratory, reference: Result, kills: Sequence[Kill]) -> list[Place]:
    """Carry out all `kills` on one run; return the phases they came in.

    When the run ends before the last kill, another run begins with the missed kill, without its delay.
    """
    waiting, places, runs = list(kills), list[Place](), 0
    while waiting:
        runs += 1
        run = f"killed-{runs}"
        while waiting and (where := _kill(lab, run, waiting[0])):
            places.append(where)
            events.emit("killed", number=len(places), of=len(kills), **where.fields())
            del waiting[0]
        lab.finish(run)
        require_same(reference, lab.result(run), run)
        require_bounded(lab.store(run))
        if waiting and not waiting[0].delay_seconds:
            raise JobError(f"no attempt could be killed in the phase {waiting[0].phase}: it never came")
        if waiting:
            waiting[0] = replace(waiting[0], delay_seconds=0.0)
    return places


def prove_fence(lab: Laboratory, reference: Result) -> None:
    """Pause an attempt, let another finish, wake the first: it must stop with 76 and have changed nothing."""
    store = lab.store("fence")
    with lab.attempt("fence") as first:
        # In a bucket it is paused in mid-commit. Where a folder is the store it could hold the lock then.
        _read_to(first, "train" if local_path(lab.uri) else "commit")
        first.signal(signal.SIGSTOP)
        events.emit("paused", **place(first.events).fields())
        lab.finish("fence")
        left = _hashes(store)
        first.signal(signal.SIGCONT)
        code = first.end()
    if code != FencedError.exit_code:
        raise JobError(
            f"a paused attempt woke up after a newer one had finished and ended with {code} instead of 76: "
            + first.last_words()
        )
    found = _hashes(store)
    if changed := [key for key, sha256 in left.items() if found.get(key) != sha256]:
        raise JobError(f"a paused attempt woke up and changed what another left: {', '.join(changed)}")
    require_same(reference, lab.result("fence"), "fence")
    events.emit("fenced", cause=first.last_words())


def prove_fallback(lab: Laboratory, reference: Result) -> str:
    """Damage the newest checkpoint: the next attempt must name it and use another; return its key."""
    with lab.attempt("fallback") as child:
        for _ in range(2):
            _read_to(child, "checkpoint")
        child.signal(signal.SIGKILL)
    time.sleep(LATE_REQUEST_SECONDS)
    damaged = _damage_newest(lab.store("fallback"))
    skipped = [event for event in lab.finish("fallback") if event["event"] == "checkpoint_skipped"]
    if [event["manifest"] for event in skipped] != [damaged]:
        raise JobError(f"{damaged} was damaged, but the attempt after it logged {skipped or 'nothing'}")
    require_same(reference, lab.result("fallback"), "fallback")
    events.emit("fell_back", skipped=damaged, reason=skipped[0]["reason"])
    return damaged


def prove_unread(lab: Laboratory, reference: Result) -> None:
    """Stop reading an attempt's log while it trains: it must finish all the same."""
    with lab.attempt("unread") as child:
        _read_to(child, "train")
        child.stop_reading()
        code = child.wait()
    if code:
        raise JobError(f"an attempt whose log nobody read ended with {code}")
    require_same(reference, lab.result("unread"), "unread")
    events.emit("unread")


def _kill(lab: Laboratory, run: str, kill: Kill) -> Place | None:
    """Start an attempt, kill it and return where it was; None if it finished the run before."""
    with lab.attempt(run) as child:
        if child.until(kill.is_due):
            time.sleep(kill.delay_seconds)
            child.signal(signal.SIGKILL)
        code = child.end()
    if code == -signal.SIGKILL:
        return place(child.events)
    if code:
        raise JobError(f"an attempt on {run} ended with {code}: {child.last_words()}")
    return None


def _read_to(child: Child, name: str) -> None:
    if not child.until(named(name)):
        raise JobError(f"an attempt ended before its event {name!r}: {child.last_words()}")


def _hashes(store: Store) -> dict[str, str]:
    """Return the SHA-256 of all that a fenced attempt may not change."""
    return {
        entry.key: hashlib.sha256(store.get(entry.key).data).hexdigest()
        for entry in store.list()
        if not entry.key.startswith(OWN)
    }


def _damage_newest(store: Store) -> str:
    """Change a byte in an object of the newest checkpoint; return the manifest's key."""
    manifest = claims.latest(store)
    if manifest is None:
        raise JobError(f"{store.uri} has no checkpoint after two were said to be durable")
    key = next(iter(manifest.objects.values())).key
    data = bytearray(store.get(key).data)
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))
    return manifest.key


def lines(proof: Proof) -> list[str]:
    """Return the verdict for people."""
    phases = ", ".join(f"{phase} {proof.kills[phase]}" for phase in ("start", *PHASES) if proof.kills[phase])
    return [
        f"kills     {proof.kills.total()} by SIGKILL: {phases}",
        f"pauses    {proof.pauses} of attempts that contended for a run: one finished it, the others stopped",
        f"bits      the same each time: weights {proof.weights_sha256}",
        f"          predictions {proof.predictions_sha256}; report and history too",
        "fence     an attempt that was paused stopped with 76 when it woke up, and changed nothing",
        f"fallback  {proof.damaged} was damaged, named and passed over",
        "log       an attempt whose log nobody read any more finished",
    ]
