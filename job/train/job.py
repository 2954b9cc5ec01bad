"""The job: data, network, training, evaluation, report."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from job import events
from job.data.dataset import prepare
from job.data.store_cache import place
from job.machine import compiler, faults
from job.machine import device as devices
from job.machine.environment import environment, name_code
from job.machine.faults import Watchdog
from job.machine.preemption import Preemption
from job.network.weights import NetworkInfo
from job.preflight import doctor as preflight
from job.progress import Plan, Progress
from job.run import layout
from job.run.outputs import History, Run
from job.settings import Placement, Recipe
from job.store import Store, open_store
from job.train import graph
from job.train.attempt import Attempt
from job.train.schedule import one_cycle
from job.train.startup import Startup
from job.train.summary import conclude
from job.train.task import Task
from job.train.trainer import Trainer
from job.view import evidence, page


def train(recipe: Recipe, placement: Placement, preemption: Preemption) -> dict[str, Any]:
    """Bring the run of `recipe` to its report, from wherever an earlier attempt left it; return the report.

    A finished run is not trained again. Raises JobError.
    """
    startup = Startup()
    startup.lap("imports")
    device = devices.choose(placement.device)
    devices.configure(recipe.deterministic)
    if placement.graph:
        graph.check(recipe, device)
    if recipe.compile:
        compiler.prepare(Path(placement.cache), device)
    store = open_store(placement.run, placement.retry_seconds) if placement.run else None
    preflight.check(recipe, placement, device, store)
    startup.lap("preflight")
    events.phase("data")
    data = prepare(placement.data, Path(placement.cache), place(placement.store_cache, placement.run))
    precision = devices.resolve_precision(recipe.precision, device)
    recipe = replace(recipe, precision=precision, data_sha256=data.dataset.sha256)
    task = Task(data, recipe, device)
    startup.lap("data")

    store = store or open_store(f"runs/{recipe.fingerprint}", placement.retry_seconds)
    run = Run.open(store, recipe, placement.accept_drift)
    if published := run.report():
        finished = evidence.parse_report(published, run.uri(layout.REPORT))
        report_finished(run.uri(layout.REPORT), finished["environment"])
        draw_page(store)  # it may be missing, or be that of the run before it was finished
        return finished

    info = NetworkInfo(
        recipe.depth, recipe.width, data.dataset.classes, data.mean, data.std, recipe.data_sha256
    )
    network = initialise(info, recipe.seed).to(device).to(memory_format=torch.channels_last)
    with Attempt.claim(run, network, devices.machine(device), placement, preemption) as attempt:
        recorder = graph.CudaRecorder() if placement.graph else None
        return complete(attempt, task, network, info, startup, placement.step_timeout, recorder)


def complete(
    attempt: Attempt,
    task: Task,
    network: nn.Sequential,
    info: NetworkInfo,
    startup: Startup,
    step_timeout: float,
    recorder: graph.Recorder | None,
) -> dict[str, Any]:
    """Train from where the run is to its report; return that."""
    if attempt.outputs:
        return present(attempt, attempt.outputs)
    recipe, run, device = attempt.run.recipe, attempt.run, task.device
    schedule = partial(one_cycle, recipe.cycles, len(task.batches))
    plan = Plan([cycle.epochs for cycle in recipe.cycles], len(task.batches), recipe.batch_size, schedule)
    progress = Progress(plan, attempt.checkpoint_age)
    watchdog = Watchdog(step_timeout, attempt.settle, compiling=recipe.compile)
    task.after_batch = watchdog.progress

    def after_step() -> None:
        startup.first_step(device)
        watchdog.step()
        progress.advance()
        attempt.after_step()

    trainer, history = Trainer(network, task.batches, recipe, after_step, recorder), History()
    if attempt.state:
        trainer.restore(attempt.state)
        history = History(attempt.state.history)
        progress.begin_at(trainer.epoch, trainer.step, [record.to_json() for record in history.records])
    startup.lap("resume")

    events.emit("train", run=run.store.uri, attempt=attempt.generation, device=devices.describe(device))
    with attempt.kept(trainer, history), faults.explained(memory_fix(recipe)), watchdog, progress:
        while trainer.epoch < recipe.epochs:
            with attempt.preemption.deferred(), watchdog.watching():
                figures = trainer.train_epoch()
            if recipe.evaluates(trainer.epoch + 1):
                events.phase("evaluate", epoch=trainer.epoch + 1, step=trainer.step)
                with watchdog.watching():
                    figures |= task.figures(network)
            with attempt.preemption.deferred():
                record = history.add(figures, attempt.generation)
                trainer.next_epoch()
            progress.epoch(record.to_json())
        if history.records[-1].accuracy is None:  # --accept-drift has made an earlier epoch the last one
            with watchdog.watching():
                figures = task.figures(network)
            with attempt.preemption.deferred():
                history.evaluate_last(figures)
        attempt.save()
        events.phase("score")
        with watchdog.watching():
            predictions = task.evaluate(network)
        results = conclude(
            run, recipe, task.data, info, network, history, predictions, attempt.lineage(), device
        )
        attempt.finish(results)
        return present(attempt, results)


def memory_fix(recipe: Recipe) -> str:
    """Return what to do where the device has too little memory for the recipe."""
    return (
        f"Lower --batch-size, now {recipe.batch_size}: that is another recipe, so another --run. "
        "Or use a device with more memory"
    )


def present(attempt: Attempt, results: dict[str, bytes]) -> dict[str, Any]:
    """Put a finished run's outputs, and the page drawn of them, where people look; return the report."""
    attempt.publish(results)
    draw_page(attempt.store)
    return dict(json.loads(results[layout.REPORT]))


def report_finished(uri: str, made_by: dict[str, Any]) -> None:
    """Log which code made a finished run and which is here; `made_by` is the report's environment section."""
    here = environment()
    events.emit("finished", report=uri, made_by=name_code(made_by), here=name_code(here))
    if made_by.get("code", here["code"]) != here["code"]:
        events.warn("code_changed", fix="Train it with this code in its own --run, if that matters")


def draw_page(store: Store) -> None:
    """Put the page of a finished run next to its report; a failure is logged, since the result is durable."""
    try:
        events.emit("page", uri=page.publish(store))
    except Exception as error:
        events.warn("page_failed", reason=str(error), fix=f"Draw it with: micronet report {store.uri}")


def initialise(info: NetworkInfo, seed: int) -> nn.Sequential:
    """Return the network with the weights that `seed` gives, the same for every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return info.build()
