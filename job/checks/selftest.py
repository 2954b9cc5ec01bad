"""Prove exact resume and fencing in the user's own store and on the user's machine.

A small run is trained undisturbed: dense, pruned, quantised, its statistics averaged. The same recipe is
then trained with SIGKILLs, by two attempts at once that are paused, with an attempt that wakes up after
another has finished the run, from a damaged checkpoint, and while nobody reads its log. Each must end with
the first run's weights, predictions, report and history.
"""

from __future__ import annotations

import hashlib
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from job import events
from job.checks.child import Child, named
from job.checks.interruptions import PHASES, plan_kills, position, prove_pauses, prove_same_bits
from job.checks.laboratory import Laboratory, Result, laboratory, require_same
from job.errors import FencedError, JobError
from job.machine.preemption import Preemption
from job.run import claims, layout
from job.store import Store, local_path

OWN = (f"{layout.CLAIMS}/", f"{layout.HEARTBEATS}/")
"""Folders in which an attempt may write its own objects even when it is fenced."""

LATE_REQUEST_SECONDS = 1.0
"""How long a store may take to carry out a request of a process that was killed."""


@dataclass(frozen=True)
class Proof:
    """What every run ended with, the kills by phase, the pauses, and the checkpoint that was damaged.

    `shared` counts the attempts by their number of processes, `victims` the kills by whom they hit.
    """

    weights_sha256: str
    predictions_sha256: str
    kills: Counter[str]
    pauses: int
    damaged: str
    shared: Counter[int]
    victims: Counter[str]


def selftest(
    uri: str,
    kills: int,
    seed: int,
    options: Sequence[str],
    keep: bool,
    preemption: Preemption,
    processes: int = 1,
) -> Proof:
    """Carry out every proof under a throw-away prefix below `uri`, which is removed unless `keep`.

    There are as many pauses as `kills`; `seed` decides the instants of both. `options` are those of `train`
    for the device, the precision and the width. Each attempt has 1 to `processes` processes, of which a kill
    or a pause hits one, the agent or all. Raises JobError (exit code 1) that says which proof failed, and the
    store's errors.
    """
    epochs = 4 + kills // 2
    with laboratory(uri, epochs, options, keep, preemption, processes, seed) as lab:
        events.emit("selftest", prefix=lab.uri, kills=kills, seed=seed)
        lab.finish("reference")
        reference = lab.result("reference")
        killed = prove_same_bits(lab, reference, plan_kills(kills, epochs, seed))
        prove_pauses(lab, reference, kills, seed)
        prove_fence(lab, reference)
        damaged = prove_fallback(lab, reference)
        prove_unread(lab, reference)
    report = reference.report
    phases = Counter(each.where.phase for each in killed)
    victims = Counter(each.victim or "all" for each in killed)
    sha256 = report.weights.sha256, report.predictions.sha256
    return Proof(*sha256, phases, kills, damaged, lab.shared, victims)


def prove_fence(lab: Laboratory, reference: Result) -> None:
    """Pause an attempt, let another finish, wake the first: it must stop with 76 and change nothing."""
    store = lab.store("fence")
    with lab.attempt("fence") as first:
        # In a bucket it is paused during a commit; in a folder it would hold the other's lock then.
        _read_to(first, "train" if local_path(lab.uri) else "commit")
        first.signal(signal.SIGSTOP)
        events.emit("paused", **position(first.events).fields())
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
    """Damage the newest checkpoint: the next attempt must log it and resume from another; return its key."""
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
    """Stop reading an attempt's log while it trains: it must still finish."""
    with lab.attempt("unread") as child:
        _read_to(child, "train")
        child.stop_reading()
        code = child.wait()
    if code:
        raise JobError(f"an attempt whose log was no longer read ended with {code}")
    require_same(reference, lab.result("unread"), "unread")
    events.emit("unread")


def _read_to(child: Child, name: str) -> None:
    if not child.until(named(name)):
        raise JobError(f"an attempt ended before its event {name!r}: {child.last_words()}")


def _hashes(store: Store) -> dict[str, str]:
    """Return the SHA-256 of each object that a fenced attempt may not change, by its key."""
    return {
        entry.key: hashlib.sha256(store.get(entry.key).data).hexdigest()
        for entry in store.list()
        if not entry.key.startswith(OWN)
    }


def _damage_newest(store: Store) -> str:
    """Change a byte in an object of the newest checkpoint; return the manifest's key."""
    manifest = claims.latest(store)
    if manifest is None:
        raise JobError(f"{store.uri} has no checkpoint, although two were reported as durable")
    key = next(iter(manifest.objects.values())).key
    data = bytearray(store.get(key).data)
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))
    return manifest.key


def lines(proof: Proof) -> list[str]:
    """Return what was proved, for people."""
    phases = ", ".join(f"{phase} {proof.kills[phase]}" for phase in ("start", *PHASES) if proof.kills[phase])
    shared = ", ".join(f"{count} in {proof.shared[count]} attempts" for count in sorted(proof.shared))
    victims = ", ".join(f"{victim} {number}" for victim, number in sorted(proof.victims.items()))
    return [
        f"kills     {proof.kills.total()} by SIGKILL: {phases}",
        *([f"processes {shared}; killed: {victims}"] if max(proof.shared) > 1 else []),
        f"pauses    {proof.pauses} of attempts that contended for a run: one finished it, the other stopped",
        f"bits      identical after each: weights {proof.weights_sha256}",
        f"          predictions {proof.predictions_sha256}; so are report and history",
        "fence     an attempt paused while another finished the run stopped with 76 and changed nothing",
        f"fallback  {proof.damaged} was damaged: it was logged, and an older checkpoint resumed",
        "log       an attempt whose log was no longer read finished its run",
    ]
