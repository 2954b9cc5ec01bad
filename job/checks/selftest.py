"""The proof that a run survives what is done to it, in the user's own store and on the user's machine.

A small run is trained undisturbed. The same run is then trained through SIGKILLs, past a paused attempt that
wakes up, and from a damaged checkpoint. Each must end with the first one's weights, predictions, report and
history.
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
from job.checks.compare import Result, differences
from job.checks.kills import PHASES, Kill, Place, place, plan
from job.checks.laboratory import Laboratory, laboratory
from job.errors import DataError, FencedError, JobError
from job.machine.preemption import Preemption
from job.run import claims, layout
from job.store import Store, local_path

SHOWN = 5  # differences in one error
OWN = (
    f"{layout.CLAIMS}/",
    f"{layout.HEARTBEATS}/",
)  # an attempt's own, also when it is fenced
LATE_REQUEST_SECONDS = 1.0  # within which a store carries out what a killed process had asked for


@dataclass(frozen=True)
class Proof:
    """What every run ended with, how many kills came in which phase, and the checkpoint that was damaged."""

    weights_sha256: str
    predictions_sha256: str
    kills: Counter[str]
    damaged: str


def selftest(uri: str, kills: int, seed: int, device: str, keep: bool, preemption: Preemption) -> Proof:
    """Prove same bits, fence and fallback under a throw-away prefix below `uri`, removed unless `keep`.

    `device` is "cuda" or "cpu". Raises JobError (exit code 1) saying what does not hold, and the store's
    errors.
    """
    epochs = 4 + kills // 2
    with laboratory(uri, epochs, device, keep, preemption) as lab:
        events.emit("selftest", prefix=lab.uri, kills=kills, seed=seed)
        lab.finish("reference")
        reference = lab.result("reference")
        places = prove_same_bits(lab, reference, plan(kills, epochs, seed))
        prove_fence(lab, reference)
        damaged = prove_fallback(lab, reference)
    sha256 = {name: reference.report[name]["sha256"] for name in ("weights", "predictions")}
    return Proof(sha256["weights"], sha256["predictions"], Counter(where.phase for where in places), damaged)


def prove_same_bits(lab: Laboratory, reference: Result, kills: Sequence[Kill]) -> list[Place]:
    """Carry out all `kills` on one run; return where they came.

    Where the run ends too soon the next one is begun, in which the kill that was missed comes without delay.
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
        _compare(lab, run, reference)
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
            f"a paused attempt woke up beside a newer one and ended with {code} instead of 76: "
            + first.last_words()
        )
    found = _hashes(store)
    if changed := [key for key, sha256 in left.items() if found.get(key) != sha256]:
        raise JobError(f"a paused attempt woke up and changed what another left: {', '.join(changed)}")
    _compare(lab, "fence", reference)
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
        raise JobError(f"{damaged} was damaged, but the attempt after it told of {skipped or 'nothing'}")
    _compare(lab, "fallback", reference)
    events.emit("fell_back", skipped=damaged, reason=skipped[0]["reason"])
    return damaged


def _kill(lab: Laboratory, run: str, kill: Kill) -> Place | None:
    """Start an attempt, kill it and return where it was; None if it came to the run's end before."""
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


def _compare(lab: Laboratory, run: str, reference: Result) -> None:
    try:
        found = differences(reference, lab.result(run))
    except DataError as error:
        found = [error.message]
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise JobError(
            f"the run {run!r} did not end as the undisturbed one: {'; '.join(found[:SHOWN])}{more}",
            "Run it again with the same --seed and --keep, and report what is left",
        )


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
        f"bits      the same each time: weights {proof.weights_sha256}",
        f"          predictions {proof.predictions_sha256}; report and history too",
        "fence     an attempt that was paused stopped with 76 when it woke up, and changed nothing",
        f"fallback  {proof.damaged} was damaged, named and passed over",
    ]
