"""The job: data, network, training, evaluation, report."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from job import events
from job.data.archive import place
from job.data.dataset import PreparedData, prepare
from job.machine import compiler, faults, launch
from job.machine import device as devices
from job.machine.faults import Watchdog
from job.machine.notices import NoticePoller
from job.machine.preemption import Preemption
from job.machine.processes import Group
from job.network.weights import NetworkInfo
from job.preflight import doctor as preflight
from job.progress import Progress, Startup, Workload
from job.recipe import Recipe
from job.run import layout
from job.run.outputs import History, Run
from job.run.report import Report
from job.run.state import TrainingState, largest
from job.settings import DeviceSettings, Placement
from job.store import open_store
from job.train.attempt import Attempt
from job.train.checkpointing import Checkpointing
from job.train.compression import Teacher
from job.train.evaluate import Evaluator
from job.train.loader import DeviceData
from job.train.phases import Final, PhaseWeights, phase_results
from job.train.pretrained import Pretrained
from job.train.schedule import one_cycle
from job.train.step import CudaRecorder, check_graph
from job.train.summary import conclude, draw_page, published_report
from job.train.target_score import choose_sparsity
from job.train.trainer import Trainer

FINISHED, NOTHING_YET = b"finished", b"nothing yet"
"""What process 0 shares in place of a state to resume from."""


def train(recipe: Recipe, placement: Placement, preemption: Preemption) -> Report | None:
    """Bring the run of `recipe` to its report, from wherever an earlier attempt left it; return the report.

    A finished run is not trained again. Of several processes that torchrun has started, process 0 does so and
    the others compute their shards; they return None. Raises JobError.
    """
    startup = Startup()
    startup.lap("imports")
    device = devices.choose(placement.device.device, launch.local_rank())
    devices.configure(recipe.deterministic, recipe.shards)
    group = Group.join(device, placement.device.step_timeout)
    own = group.own(recipe.shards)
    if placement.device.graph:
        check_graph(recipe, device)
    cache, retry_seconds = Path(placement.data.cache), placement.attempt.retry_seconds
    if recipe.compile:
        compiler.prepare(cache, device)
    store = open_store(placement.run, retry_seconds) if placement.run and group.first else None
    preflight.check_device(device)
    if group.first:
        preflight.check_storage(recipe, placement.run, placement.data, store)
    startup.lap("preflight")
    events.phase("data")
    copy = place(placement.data.store_cache, placement.run)
    data = group.in_turn(lambda: prepare(placement.data.data, cache, copy))
    precision = devices.resolve_precision(recipe.precision, device)
    recipe = replace(recipe, precision=precision, data_sha256=data.dataset.sha256)
    pretrained = Pretrained.read(placement.pretrained, recipe, data)
    recipe = choose_sparsity(pretrained.with_hashes(recipe), data.dataset)
    machine = devices.machine(device)
    group.require_same({**machine, "recipe": recipe.fingerprint})
    on_device = DeviceData(data, recipe, device, own)
    info = NetworkInfo(
        recipe.depth, recipe.width, data.dataset.classes, data.mean, data.std, recipe.data_sha256
    )
    network = initialise(info, recipe, pretrained).to(device).to(memory_format=torch.channels_last)
    startup.lap("data")
    if not group.first:
        follow(group, recipe, on_device, network, pretrained, placement.device, preemption)
        return None

    store = store or open_store(f"runs/{recipe.fingerprint}", retry_seconds)
    run = Run.open(store, recipe, placement.attempt.accept_drift)
    if report := published_report(run):
        group.share(FINISHED)
        draw_page(store)  # it may be missing, or be that of the run before it was finished
        return report
    sharing = group.count if recipe.shards > 1 else None
    with Attempt.claim(run, network, machine, placement.attempt, cache, preemption, sharing) as attempt:
        if attempt.outputs:
            group.share(FINISHED)
            return present(attempt, attempt.outputs)
        group.share(attempt.state.encode() if attempt.state else NOTHING_YET)
        return complete(attempt, group, data, on_device, network, info, pretrained, placement.device, startup)


def complete(
    attempt: Attempt,
    group: Group,
    data: PreparedData,
    on_device: DeviceData,
    network: nn.Sequential,
    info: NetworkInfo,
    pretrained: Pretrained,
    settings: DeviceSettings,
    startup: Startup,
) -> Report:
    """Train from where the run is to its report; return that."""
    recipe, run, batches = attempt.run.recipe, attempt.run, on_device.batches
    device = batches.device

    def after_step() -> None:
        startup.first_step(partial(devices.synchronise, device))
        watchdog.step()
        progress.advance()
        checkpointing.after_step()

    def teacher() -> Teacher:
        return Teacher.of(
            recipe, pretrained.teacher_network or group.share(phase_weights.read(recipe.phases[0])), device
        )

    history = History(attempt.state.history if attempt.state else ())
    phase_weights = PhaseWeights(run, info, history, attempt.budget_seconds)
    recorder = CudaRecorder if settings.graph else None
    trainer = Trainer(network, batches, recipe, after_step, recorder, teacher, group)
    checkpointing = Checkpointing(attempt, trainer, history, group)
    watchdog = Watchdog(group.longer(settings.step_timeout), checkpointing.settle, compiling=recipe.compile)
    evaluator = Evaluator(network, on_device, recipe.precision, after_batch=watchdog.progress)
    schedule = partial(one_cycle, recipe.all_cycles, len(batches))
    workload = Workload(recipe.phases, len(batches), recipe.batch_size, schedule)
    progress = Progress(workload, attempt.saver.age)
    if attempt.state:
        trainer.restore(attempt.state)
        progress.begin_at(trainer.epoch, trainer.step, [record.figures() for record in history.records])
    startup.lap("resume")

    events.emit("train", run=run.store.uri, attempt=attempt.generation, device=devices.describe(device))
    with checkpointing.running(), faults.explained(memory_fix(recipe)), watchdog, progress:
        while trainer.epoch < recipe.epochs:
            group.wait()
            with attempt.preemption.deferred(), watchdog.watching():
                figures = trainer.train_epoch()
            if recipe.evaluates(trainer.epoch + 1):
                events.phase("evaluate", epoch=trainer.epoch + 1, step=trainer.step)
                with watchdog.watching():
                    figures |= evaluator.figures()
            new_weights = phase_weights.keep(trainer.epoch + 1, network)
            with attempt.preemption.deferred():
                record = history.add({**figures, **new_weights}, attempt.generation)
                trainer.next_epoch()
            progress.epoch(record.figures())
        if history.records[-1].accuracy is None:  # --accept-drift has made an earlier epoch the last one
            with watchdog.watching():
                figures = evaluator.figures()
            with attempt.preemption.deferred():
                history.evaluate_last(figures)
        checkpointing.save()
        events.phase("score")
        with watchdog.watching():
            final = Final.of(network, info, evaluator)
            phases = phase_results(phase_weights, final, evaluator, data.dataset.train.images.shape[1:])
        outputs = conclude(run, data, final, phases, history, attempt.lineage(), device)
        attempt.finish(outputs, len(batches))
        return present(attempt, outputs)


def follow(
    group: Group,
    recipe: Recipe,
    on_device: DeviceData,
    network: nn.Sequential,
    pretrained: Pretrained,
    settings: DeviceSettings,
    preemption: Preemption,
) -> None:
    """Compute this process's shards of each step while process 0 completes the run."""

    def after_step() -> None:
        watchdog.step()
        if notices.notice is not None:
            preemption.expect(notices.notice.gone)
        group.check(preemption)

    def teacher() -> Teacher:
        return Teacher.of(recipe, pretrained.teacher_network or group.share(), device)

    device = on_device.batches.device
    notices = NoticePoller()
    if launch.local_rank() == 0:
        notices.start()  # of a machine that process 0 is not on
    recorder = CudaRecorder if settings.graph else None
    trainer = Trainer(network, on_device.batches, recipe, after_step, recorder, teacher, group)
    watchdog = Watchdog(group.longer(settings.step_timeout), lambda cause: None, compiling=recipe.compile)
    with preemption.deferred(), faults.explained(memory_fix(recipe)), watchdog, group.outliving_first():
        state = group.share()
        if state == FINISHED:
            return
        if state != NOTHING_YET:
            trainer.restore(TrainingState.decode(state, largest(network.state_dict())))
        while trainer.epoch < recipe.epochs:
            group.wait()
            with watchdog.watching():
                trainer.train_epoch()
            trainer.next_epoch()


def present(attempt: Attempt, outputs: dict[str, bytes]) -> Report:
    """Put a finished run's outputs, and the page drawn of them, where people look; return the report."""
    attempt.publish(outputs)
    draw_page(attempt.store)
    return Report.decode(outputs[layout.REPORT], attempt.run.uri(layout.REPORT))


def memory_fix(recipe: Recipe) -> str:
    """Return what to do where the device has too little memory for the recipe."""
    return (
        f"Lower --batch-size, now {recipe.batch_size}: that is another recipe, so another --run. "
        "Or use a device with more memory"
    )


def initialise(info: NetworkInfo, recipe: Recipe, pretrained: Pretrained) -> nn.Sequential:
    """Return the network with its first weights: pretrained ones, or the seed's, equal on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = info.build_compressed() if recipe.compresses else info.build()
    pretrained.initialise(network)
    return network
