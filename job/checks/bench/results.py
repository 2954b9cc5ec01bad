"""What `micronet bench` has measured: the records that `--json` prints, and their text for people."""

from __future__ import annotations

from typing import Required, TypedDict

from job.checks.bench.links import Modelled
from job.checks.bench.timing import Spread, SpreadWithMean


class LoopFigures(TypedDict):
    """The job's loop, the bare loop and stock fastai's."""

    steps: int
    images_per_second: dict[str, Spread]
    job_to_bare: SpreadWithMean
    job_to_stock: SpreadWithMean
    hours_of_600_epochs: float
    cost_of_600_epochs: float | None


class AugmentationFigures(TypedDict):
    """The augmentation by itself, the job's and others."""

    images_per_second: dict[str, Spread]
    job_to_fastai: SpreadWithMean
    job_to_torchvision: SpreadWithMean
    job_to_grid_sample: SpreadWithMean


class HostFigures(TypedDict):
    """Steps of a network of three operators, and what a step costs the host besides its operators."""

    steps_per_second: dict[str, Spread]
    overhead_seconds: dict[str, SpreadWithMean]


class DeterminismFigures(TypedDict):
    """The bare loop with deterministic algorithms and without."""

    images_per_second: dict[str, Spread]
    on_to_off: SpreadWithMean


class CheckpointFigures(TypedDict):
    """The job's loop with a checkpoint every 10 s and without."""

    steps: int
    images_per_second: dict[str, Spread]
    saving_to_plain: SpreadWithMean
    lost_seconds: SpreadWithMean
    blocked_seconds: Spread
    copy_seconds: Spread


class ParallelFigures(TypedDict):
    """Shards in one process, several processes at 4 shards, and a model of several GPUs.

    By the number of processes: their speed to one's, the share of a step that the exchange adds, the exchange
    by itself, and the bytes that a process sends in a step.
    """

    steps: int
    images_per_second: dict[str, Spread]
    shards_to_one: dict[str, SpreadWithMean]
    processes_to_one: dict[str, SpreadWithMean]
    exchange_share: dict[str, SpreadWithMean]
    exchange_seconds: dict[str, Spread]
    sent_bytes: dict[str, float]
    gradient_bytes: int
    model: list[Modelled]


class Settings(TypedDict):
    """The settings of the recipe that change its speed."""

    depth: int
    width: int
    batch_size: int
    precision: str
    compile: bool
    graph: bool


class Results(TypedDict, total=False):
    """What `micronet bench --json` prints: the parts that were measured, and on which machine."""

    machine: Required[dict[str, str | None]]
    settings: Required[Settings]
    loop: LoopFigures
    augmentation: AugmentationFigures
    host: HostFigures
    determinism: DeterminismFigures
    checkpoints: CheckpointFigures
    parallel: ParallelFigures


INDENT, FIGURE_WIDTH = 13, 56


def lines(results: Results) -> list[str]:
    """Return the figures for people, each with what it means."""
    machine, settings = results["machine"], results["settings"]
    network = f"WideResNet-{settings['depth']}-{settings['width']}, batches of {settings['batch_size']}"
    compiled = ", compiled" if settings["compile"] else ", as a CUDA graph" if settings["graph"] else ""
    shown = [
        f"machine      {machine['device']}, torch {machine['torch']}",
        f"settings     {network}, {settings['precision']}{compiled}",
        "figures      median (lowest to highest, n rounds); a ratio is of figures of the same round",
    ]
    if "loop" in results:
        shown += _part("loop", _loop(results["loop"]))
    if "augmentation" in results:
        shown += _part("augmentation", _augmentation(results["augmentation"]))
    if "checkpoints" in results:
        shown += _part("checkpoints", _checkpoints(results["checkpoints"]))
    if "determinism" in results:
        shown += _part("determinism", _determinism(results["determinism"]))
    if "host" in results:
        shown += _part("host", _host(results["host"]))
    if "parallel" in results:
        shown += _part("parallel", _parallel(results["parallel"]))
    return shown


def _part(name: str, rows: list[str]) -> list[str]:
    return [f"{name if not number else '':<{INDENT}}{row}" for number, row in enumerate(rows)]


def _loop(loop: LoopFigures) -> list[str]:
    rates, cost = loop["images_per_second"], loop["cost_of_600_epochs"]
    priced = "" if cost is None else f", which costs {cost:,.2f}"
    return [
        _rate("job", rates, "training as in a run: augmentation, mixup, step, history, heartbeat"),
        _rate("bare", rates, "forward, backward and optimizer on one batch: the most that any job can reach"),
        _rate("stock", rates, "fastai as documented: fp32, PNG files, worker processes"),
        _ratio("job / bare", loop["job_to_bare"], "1: everything around the step costs nothing"),
        _ratio("job / stock", loop["job_to_stock"], "how many times as fast as stock fastai"),
        f"600 epochs of CIFAR-100 take {loop['hours_of_600_epochs']:,.1f} h{priced}, at the job's median",
    ]


def _augmentation(augmentation: AugmentationFigures) -> list[str]:
    rates = augmentation["images_per_second"]
    return [
        _rate("job", rates, "the augmentation of a batch, with mixup"),
        _rate("fastai", rates, "aug_transforms() on a batch, without mixup"),
        _rate("torchvision", rates, "the same kinds of transforms, one image at a time"),
        _rate("grid_sample", rates, "one resample of a batch: the least that a geometric augmentation does"),
        _ratio("job / fastai", augmentation["job_to_fastai"], "above 1: the job's is faster"),
        _ratio("job / torchvision", augmentation["job_to_torchvision"], "above 1: the job's is faster"),
        _ratio("job / grid_sample", augmentation["job_to_grid_sample"], "1: only the resample costs time"),
    ]


def _checkpoints(checkpoints: CheckpointFigures) -> list[str]:
    rates = checkpoints["images_per_second"]
    blocked, copy = _in_ms(checkpoints["blocked_seconds"]), _in_ms(checkpoints["copy_seconds"])
    return [
        _rate("saving", rates, "the job's loop with a checkpoint in a folder every 10 s"),
        _rate("plain", rates, "the same without checkpoints"),
        _ratio("saving / plain", checkpoints["saving_to_plain"], "1: checkpoints cost nothing"),
        _row(
            f"{'lost':<20}{_with_mean(checkpoints['lost_seconds'])} s",
            "training time a checkpoint costs: how much longer the steps took while it was saved",
        ),
        _row(f"{'blocked':<20}{_spread(blocked, '.0f')} ms", "the training thread waits for a checkpoint"),
        _row(f"{'copy':<20}{_spread(copy, '.0f')} ms", "the copy off the device, which is part of that"),
    ]


def _determinism(determinism: DeterminismFigures) -> list[str]:
    rates = determinism["images_per_second"]
    return [
        _rate("on", rates, "the bare loop with deterministic algorithms, as the job trains"),
        _rate("off", rates, "the bare loop with the fastest algorithms"),
        _ratio("on / off", determinism["on_to_off"], "1: the same bits each time cost nothing"),
    ]


def _host(host: HostFigures) -> list[str]:
    meanings = {"job": "host time of a step besides its operators", "fastai": "the same in fastai's own loop"}
    spreads = {name: _mean_in_ms(host["overhead_seconds"][name]) for name in meanings}
    return [_row(f"{name:<12}{_with_mean(spreads[name])} ms a step", meanings[name]) for name in meanings]


def _parallel(parallel: ParallelFigures) -> list[str]:
    rates, size = parallel["images_per_second"], parallel["gradient_bytes"]
    rows = [_rate(name, rates, "the job's loop; several processes have 4 shards") for name in rates]
    for count, cost in parallel["shards_to_one"].items():
        rows.append(_ratio(f"{count} shards / 1", cost, "1: shards cost nothing"))
    for count, gain in parallel["processes_to_one"].items():
        sent, alone = parallel["sent_bytes"][count], _in_ms(parallel["exchange_seconds"][count])
        several = f"{count} processes"
        rows += [
            _ratio(
                f"{several} / 1", gain, f"4 shards; a ratio of {count} would mean that the exchange is free"
            ),
            _ratio(
                f"{several}, share", parallel["exchange_share"][count], "of a step that the exchange adds"
            ),
            _row(f"{several + ', alone':<20}{_spread(alone, '.1f')} ms", "the exchange by itself"),
            f"{several} send {sent / 1e6:.2f} MB a step each, {sent / size:.3f} times the gradients' bytes",
        ]
    rows.append(
        "modelled from this device's step at 4 shards; the assumptions are in job/checks/bench/links.py"
    )
    return rows + [_modelled(row) for row in parallel["model"]]


def _modelled(row: Modelled) -> str:
    exchange, exposed = row["exchange_seconds"] * 1e3, row["exposed_seconds"] * 1e3
    here = row["measured_to_modelled"]
    measured = "" if here is None else f", {here:.3f} of it measured"
    rate = f"{row['processes']} GPUs, {row['link']:<14}{row['images_per_second']:>10,.0f} images/s{measured}"
    return _row(rate, f"exchange {exchange:.2f} ms, {exposed:.2f} ms of it not hidden")


def _rate(name: str, rates: dict[str, Spread], meaning: str) -> str:
    return _row(f"{name:<12}{_spread(rates[name], ',.0f')} images/s", meaning)


def _ratio(name: str, ratio: SpreadWithMean, meaning: str) -> str:
    return _row(f"{name:<20}{_with_mean(ratio)}", meaning)


def _row(figure: str, meaning: str) -> str:
    return f"{figure:<{FIGURE_WIDTH}}  {meaning}"


def _in_ms(spread: Spread) -> Spread:
    return {
        "median": spread["median"] * 1e3,
        "low": spread["low"] * 1e3,
        "high": spread["high"] * 1e3,
        "n": spread["n"],
    }


def _mean_in_ms(spread: SpreadWithMean) -> SpreadWithMean:
    half = spread["half_width"]
    return {
        **_in_ms(spread),
        "mean": spread["mean"] * 1e3,
        "half_width": None if half is None else half * 1e3,
    }


def _with_mean(values: SpreadWithMean) -> str:
    half = values["half_width"]
    interval = "" if half is None else f", mean {values['mean']:.3f} ± {half:.3f} (95 %)"
    return _spread(values, ".3f") + interval


def _spread(values: Spread, form: str) -> str:
    median, low, high = (format(value, form) for value in (values["median"], values["low"], values["high"]))
    return f"{median} ({low} to {high}, n = {values['n']})"
