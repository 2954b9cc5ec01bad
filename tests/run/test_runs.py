"""Whole runs end with the same bits: real processes, killed, stopped, doubled, cut off from their store."""

import hashlib
import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from job.checks.child import Child, Event, named
from job.run import claims
from job.run.layout import order_of
from job.run.records import Place
from job.store import open_store
from tests.archives import write_archive
from tests.forked import micronet, started
from tests.servers import FaultProxy, RangeServer

EPOCHS, STEPS = 6, 12  # 100 images in batches of 8
GRACE_SECONDS = 15
FENCED, PREEMPTED, CONFIGURATION, MACHINE = 76, 75, 78, 74  # the README's table


class Bench:
    """Starts attempts at runs of one tiny recipe, on one archive and, unless told otherwise, one cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = write_archive(folder / "tiny.tar.gz", train=100, test=200, classes=5)

    def attempt(
        self,
        run: Path | str,
        *options: str,
        data: str = "",
        cache: str = "cache",
        batch_size: int = 8,
        before: str = "",
    ) -> AbstractContextManager[Child]:
        where = ["--run", str(run), "--data", data or str(self.archive), "--cache", str(self.folder / cache)]
        recipe = ["--depth", "10", "--width", "1", "--cycles", "4@5e-3,2@1e-3", "--precision", "fp32"]
        how = ["--device", "cpu", "--checkpoint-every", "0.1s", "--grace", str(GRACE_SECONDS)]
        size = ["--batch-size", str(batch_size)]
        return started([*where, *recipe, *size, *how, *options], before)

    def finish(self, run: Path | str, **where: Any) -> list[Event]:
        """Make an attempt that comes to the end, and return its events."""
        with self.attempt(run, **where) as child:
            assert child.end() == 0, child.last_words()
        return child.events


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def reference(bench: Bench) -> dict[str, Any]:
    """What the run leaves that nothing disturbs."""
    bench.finish(bench.folder / "reference")
    return outcome(bench.folder / "reference")


@pytest.fixture(scope="module")
def killed(bench: Bench) -> Path:
    """A run in a folder, killed in mid-training with several checkpoints. For copies."""
    run = bench.folder / "killed"
    with bench.attempt(run) as child:
        read_to(child, "epoch")
        for _ in range(2):
            read_to(child, "checkpoint")
        child.signal(signal.SIGKILL)
        assert child.end() == -signal.SIGKILL
    return run


def outcome(run: Path | str) -> dict[str, Any]:
    """Return what must be the same for every run of the recipe: bits, report and history."""
    store = open_store(str(run))
    report = json.loads(store.get("report.json").data)
    content = {name: store.get(name).data for name in ("weights.safetensors", "predictions.npz")}
    records = [json.loads(line) for line in store.get("history.jsonl").data.splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, EPOCHS + 1))
    names = ("train_loss", "test_loss", "accuracy", "lr", "momentum")
    return {
        **{name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
        **{name: report[name] for name in ("model", "accuracy", "score", "data")},
        "stated": [report[name]["sha256"] for name in ("weights", "predictions")],
        "history": [[record[name] for name in names] for record in records],
    }


def read_to(child: Child, name: str) -> Event:
    event = child.until(named(name))
    assert event, f"it ended before {name!r}: {child.last_words()}"
    return event


def the(name: str, events: list[Event]) -> Event:
    (event,) = [event for event in events if event["event"] == name]
    return event


def position(run: Path | str) -> tuple[int, int]:
    """Return the epoch (from 1) and its steps done of the newest checkpoint."""
    manifest = claims.latest(open_store(str(run)))
    assert manifest
    assert manifest.position == manifest.epoch * STEPS + manifest.step
    assert manifest.place == Place.of(manifest.epoch, manifest.step, STEPS)
    return manifest.place


def test_a_killed_run_in_a_folder_ends_with_the_same_bits(
    bench: Bench, reference: dict[str, Any], killed: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    went_on = the("resume", bench.finish(run))
    assert (went_on["epoch"], went_on["step"]) == position(killed)
    assert outcome(run) == reference


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_killed_run_in_a_bucket_ends_with_the_same_bits(
    bench: Bench, reference: dict[str, Any], kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    uri = request.getfixturevalue(f"{kind}_uri")
    with bench.attempt(uri) as child:
        read_to(child, "epoch")
        read_to(child, "commit")
        child.signal(signal.SIGKILL)
        assert child.end() == -signal.SIGKILL
    durable = position(uri)
    went_on = the("resume", bench.finish(uri))
    assert (went_on["epoch"], went_on["step"]) >= durable
    assert outcome(uri) == reference
    status = micronet("status", uri)
    assert (status.returncode, "state       finished" in status.stdout) == (0, True), status.stderr
    page = tmp_path / "page.html"
    done = micronet("report", uri, "--output", page)
    assert done.returncode == 0, done.stderr
    assert uri in page.read_text()


def test_sigterm_in_any_phase_loses_nothing(bench: Bench, reference: dict[str, Any], tmp_path: Path) -> None:
    """One run, stopped in its phases in turn; elsewhere than in saving no checkpoint comes by itself."""
    run, durable = tmp_path / "run", None
    for phase in ("train", "saving", "evaluate", "commit", "score", "publish"):
        every = "0.1s" if phase in ("saving", "commit") else "1h"
        with bench.attempt(run, "--checkpoint-every", every) as child:
            read_to(child, phase)
            if phase == "train":
                time.sleep(1)  # into the steps
            began = time.monotonic()
            child.signal(signal.SIGTERM)
            code = child.end()
        assert code == PREEMPTED, (phase, child.last_words())
        assert time.monotonic() - began < GRACE_SECONDS
        if durable:
            went_on = the("resume", child.events)
            assert (went_on["epoch"], went_on["step"]) == durable
        words = child.last_words()
        assert "stopped by SIGTERM" in words
        assert "lost" not in words
        if phase == "evaluate":
            assert "epoch" not in [event["event"] for event in child.events]
            assert position(run)[1] == STEPS
        durable = position(run)
        if "the run is finished" not in words:
            assert f"durable is epoch {durable[0]} step {durable[1]}" in words
    assert durable == (EPOCHS, STEPS)
    bench.finish(run)
    assert outcome(run) == reference
    lineage = json.loads((run / "report.json").read_text())["lineage"]
    reasons = [attempt["reason"] for attempt in lineage["attempts"]]
    assert reasons[:4] == ["preempted"] * 4
    assert lineage["lost_seconds"] == 0


def test_sigterm_during_the_download_keeps_what_has_come(
    bench: Bench,
    reference: dict[str, Any],
    serve: Callable[[dict[str, bytes]], RangeServer],
    tmp_path: Path,
) -> None:
    server = serve({"/tiny.tar.gz": bench.archive.read_bytes()})
    server.faults = [("drip", 100_000)]  # bytes a second, of 0.9 MB
    where: dict[str, Any] = {"data": f"{server.uri}/tiny.tar.gz", "cache": str(tmp_path / "cache")}
    with bench.attempt(tmp_path / "run", **where) as child:
        read_to(child, "data")
        while server.served < 200_000:
            time.sleep(0.05)
        began = time.monotonic()
        child.signal(signal.SIGTERM)
        assert child.end() == PREEMPTED, child.last_words()
        assert time.monotonic() - began < GRACE_SECONDS
    bench.finish(tmp_path / "run", **where)
    (_, none), (_, ranged) = server.requests[:2]
    assert none is None
    assert ranged
    assert int(ranged.removeprefix("bytes=").rstrip("-")) > 0
    found = outcome(tmp_path / "run")
    assert found.pop("data")["source"] == where["data"]
    assert found == {name: value for name, value in reference.items() if name != "data"}


def test_of_two_at_the_same_instant_one_finishes(
    bench: Bench, reference: dict[str, Any], s3_uri: str
) -> None:
    with ExitStack() as stack:
        both = [stack.enter_context(bench.attempt(s3_uri)) for _ in range(2)]
        for child in both:  # their imports may take unequal time
            read_to(child, "data")
            child.signal(signal.SIGSTOP)
        for child in both:
            child.signal(signal.SIGCONT)
        codes = [child.end() for child in both]
    assert sorted(codes) == [0, FENCED], [child.last_words() for child in both]
    assert "another attempt" in both[codes.index(FENCED)].last_words()
    assert outcome(s3_uri) == reference
    assert_whole(s3_uri)


def assert_whole(run: str) -> None:
    """Check that no object which HEAD needs is gone or changed."""
    store = open_store(run)
    manifest = claims.latest(store)
    assert manifest
    assert manifest.finished
    for stored in manifest.objects.values():
        assert hashlib.sha256(store.get(stored.key).data).hexdigest() == stored.sha256


def test_another_batch_size_is_refused_by_name(bench: Bench, killed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    with bench.attempt(run, batch_size=16) as child:
        assert child.end() == CONFIGURATION
    assert re.search(r"\bbatch_size 8 -> 16\b", child.last_words())
    assert content(run) == content(killed)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")  # locks and scratch
    }


def test_another_batch_size_is_accepted_where_asked_for_and_recorded(
    bench: Bench, killed: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    with bench.attempt(run, "--accept-drift", batch_size=16) as child:
        assert child.end() == 0, child.last_words()
    assert the("resume", child.events)["step"] == the("epoch_restarted", child.events)["steps_dropped"]
    report = json.loads((run / "report.json").read_text())
    first = json.loads((killed / "recipe.json").read_text())
    assert report["run"]["id"] == first["identity"]
    assert report["training"]["batch_size"] == 16
    (change,) = report["lineage"]["drift"]
    assert change == {"generation": 2, "field": "recipe.batch_size", "before": "8", "now": "16"}
    with bench.attempt(run, batch_size=16) as child:  # it is the run's own now
        assert child.end() == 0, child.last_words()
    with bench.attempt(run) as child:
        assert child.end() == CONFIGURATION
    assert re.search(r"\bbatch_size 16 -> 8\b", child.last_words())


def test_another_network_is_refused_whatever_is_accepted(bench: Bench, killed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    with bench.attempt(run, "--accept-drift", "--width", "2") as child:
        assert child.end() == CONFIGURATION
    assert re.search(r"\bwidth 1 -> 2\b", child.last_words())
    assert content(run) == content(killed)


def test_cycles_that_end_before_the_run_is_are_refused(bench: Bench, killed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    with bench.attempt(run) as child:  # to its third epoch
        child.until(lambda event: event["event"] == "checkpoint" and event["epoch"] >= 3)
        child.signal(signal.SIGKILL)
        child.end()
    with bench.attempt(run, "--accept-drift", "--cycles", "1@5e-3") as child:
        assert child.end() == CONFIGURATION
    assert "the cycles now have 1" in child.last_words()
    assert json.loads((run / "recipe.json").read_text())["cycles"].startswith("4@")


def test_past_the_storage_budget_the_state_is_kept_here(
    bench: Bench, reference: dict[str, Any], s3_uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    with bench.attempt(s3_uri, "--storage-budget", "2s", cache=cache) as child:
        for _ in range(2):
            read_to(child, "checkpoint")
        proxy.default = ("unavailable", 0)
        assert child.end() == MACHINE, child.last_words()
    assert "nothing could be saved" in child.last_words()
    assert "the state is kept in" in child.last_words()
    proxy.default = ("pass", 0)
    durable = position(s3_uri)
    (kept,) = tmp_path.glob("cache/unsaved-*")
    others = bench.finish(tmp_path / "other", cache=cache)  # of the same recipe
    assert not {"unsaved_state", "resume"} & {event["event"] for event in others}
    assert outcome(tmp_path / "other") == reference
    assert kept.exists()
    events = bench.finish(s3_uri, cache=cache)
    assert the("unsaved_state", events)
    went_on = the("resume", events)
    assert (went_on["epoch"], went_on["step"]) > durable
    assert outcome(s3_uri) == reference
    assert not list(tmp_path.glob("cache/unsaved-*"))


@pytest.mark.parametrize(
    "grace", [10, *(pytest.param(grace, marks=pytest.mark.soak) for grace in (15, 30, 120))]
)
def test_a_store_that_hangs_does_not_keep_the_job_past_its_grace(
    bench: Bench, s3_uri: str, proxy: FaultProxy, grace: int
) -> None:
    with bench.attempt(s3_uri, "--grace", str(grace)) as child:
        for _ in range(2):
            read_to(child, "checkpoint")
        proxy.default = ("stall", 0)
        read_to(child, "epoch")
        began = time.monotonic()
        child.signal(signal.SIGTERM)
        assert child.end() == PREEMPTED, child.last_words()
    assert grace - 2 < time.monotonic() - began < grace
    assert "the state is kept in" in child.last_words()
    assert "are lost" not in child.last_words()


def test_a_flipped_byte_in_the_newest_object_costs_one_checkpoint(
    bench: Bench, reference: dict[str, Any], killed: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    newest = claims.latest(open_store(str(run)))
    assert newest
    for path in (run / "manifests").iterdir():  # killed in mid-commit, it left one that HEAD does not name
        order = order_of(f"manifests/{path.name}")
        if order and order > newest.order:
            path.unlink()
    (stored,) = newest.objects.values()
    data = bytearray((run / stored.key).read_bytes())
    data[1000] ^= 16
    (run / stored.key).write_bytes(data)
    events = bench.finish(run)
    skipped, went_on = the("checkpoint_skipped", events), the("resume", events)
    assert skipped["manifest"] == newest.key
    assert stored.key in skipped["reason"]
    assert 0 < (went_on["epoch"] - 1) * STEPS + went_on["step"] < newest.position
    assert outcome(run) == reference


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [8, pytest.param(300, marks=pytest.mark.soak)])
def test_a_store_that_answers_503_only_makes_the_run_later(
    bench: Bench, reference: dict[str, Any], s3_uri: str, proxy: FaultProxy, seconds: int
) -> None:
    with bench.attempt(s3_uri) as child:
        for _ in range(2):
            read_to(child, "checkpoint")
        proxy.default = ("unavailable", 0)
        read_to(child, "store_retry")
        time.sleep(seconds)
        proxy.default = ("pass", 0)
        assert child.end() == 0, child.last_words()
    assert outcome(s3_uri) == reference


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_minutes_pause_beside_a_newer_attempt_ends_with_76(
    bench: Bench, reference: dict[str, Any], s3_uri: str
) -> None:
    with bench.attempt(s3_uri) as first:
        for _ in range(3):
            read_to(first, "commit")
        first.signal(signal.SIGSTOP)
        began = time.monotonic()
        bench.finish(s3_uri)
        before = outcome(s3_uri)
        time.sleep(max(0.0, 60 - (time.monotonic() - began)))
        first.signal(signal.SIGCONT)
        assert first.end() == FENCED, first.last_words()
    assert before == outcome(s3_uri) == reference
    assert_whole(s3_uri)
