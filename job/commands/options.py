"""The options that commands share, each with its default and its environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from job import settings

Command = TypeVar("Command", bound=Callable[..., Any])


def option(name: str, *declarations: str, **attributes: Any) -> Callable[[Command], Command]:
    """Return a click option that has an environment variable and shows it with its default."""
    variable = "MICRONET_" + name.split("/")[0].lstrip("-").upper().replace("-", "_")
    return click.option(
        name, *declarations, envvar=variable, show_envvar=True, show_default=True, **attributes
    )


class Seconds(click.ParamType[float]):
    """A time as `90`, `90s`, `5m` or `1h`; the command gets seconds."""

    name = "time"

    def __init__(self, zero: bool = False) -> None:
        self.zero = zero  # whether 0 is allowed

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """Return the seconds; fail for what is no positive time."""
        text = str(value)
        factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
        try:
            seconds = float(text[:-1]) * factor if factor else float(text)
        except ValueError:
            seconds = -1
        if not 0 <= seconds < float("inf") or (seconds == 0 and not self.zero):
            self.fail(f"{text!r} is no time; write for example 90, 90s or 5m", parameter, context)
        return seconds


SECONDS = Seconds()
SECONDS_OR_NEVER = Seconds(zero=True)


class Device(click.ParamType[str]):
    """A device by the names of PyTorch, or `auto`."""

    name = "device"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """Return the name; fail for what can be no device."""
        text = str(value)
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
            self.fail(f"{text!r} is not one of auto, cuda, cuda:N and cpu", parameter, context)
        return text


def recipe_options(command: Command) -> Command:
    """Add an option for each field of the recipe; the command gets them as keywords."""
    default = settings.Recipe()
    positive = click.IntRange(min=1)
    options = [
        option("--depth", type=click.IntRange(min=10), default=default.depth, help="Depth, 6n + 4."),
        option("--width", type=positive, default=default.width, help="Width, times 16, 32 and 64 channels."),
        option(
            "--cycles",
            default=",".join(map(str, default.cycles)),
            metavar="EPOCHS@LR,...",
            help="One-cycle periods with their peak learning rates.",
        ),
        option("--batch-size", type=positive, default=default.batch_size, help="Images a step."),
        option(
            "--weight-decay", type=click.FloatRange(min=0), default=default.weight_decay, help="Decoupled."
        ),
        option(
            "--mixup-alpha",
            type=click.FloatRange(min=0),
            default=default.mixup_alpha,
            help="Of mixup's Beta distribution; 0 turns mixup off.",
        ),
        option(
            "--crop-padding",
            type=click.IntRange(0, 15),
            default=default.crop_padding,
            help="Pixels a training image is shifted by at most, with reflection.",
        ),
        option(
            "--holdout",
            type=click.IntRange(min=0),
            default=default.holdout,
            help="Training images kept aside to choose the best epoch on.",
        ),
        option("--seed", type=click.IntRange(min=0), default=default.seed, help="Of everything random."),
        option(
            "--precision",
            type=click.Choice(settings.PRECISIONS),
            default=default.precision,
            help="Arithmetic of the training step.",
        ),
        option(
            "--compile/--no-compile",
            default=default.compile,
            help="Compile the training step (needs a compiler; the first step then takes a minute).",
        ),
        option(
            "--evaluate-every",
            type=positive,
            default=default.evaluate_every,
            metavar="EPOCHS",
            help="Between evaluations; each of the last tenth of the epochs, and of the last ten, has one.",
        ),
        option(
            "--deterministic/--no-deterministic",
            default=default.deterministic,
            help="Use only algorithms that give the same bits each time.",
        ),
    ]
    for decorate in reversed(options):
        command = decorate(command)
    return command


data_option = option(
    "--data",
    multiple=True,
    metavar="URI",
    help="Archive in CIFAR-100's format: a path, https://, file:// or s3:// address, optionally with "
    "#sha256=HEX. Give several to have them tried in turn. Default: CIFAR-100 from its home.",
)


def default_cache() -> str:
    """Return the user's own cache folder for this program, the same wherever a command is called from."""
    home = Path(os.environ.get("HOME") or ".")
    return str(Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "micronet")


def cache_option_for(what: str) -> Callable[[Command], Command]:
    """Return --cache, with what a command keeps there as its help."""
    return option("--cache", default=default_cache, metavar="DIR", help=f"Folder for {what}.")


cache_option = cache_option_for("the unpacked data")
store_cache_option = option(
    "--store-cache",
    metavar="URI",
    help="Store that keeps the archive for other runs. Default: data beside a run in a bucket; or none.",
)
demo_option = option(
    "--demo", is_flag=True, help="Use a generated data set and a recipe that takes minutes on a processor."
)
device_option = option(
    "--device",
    type=Device(),
    default="auto",
    metavar="auto|cuda|cuda:N|cpu",
    help="auto and cuda are the first GPU; cuda:1 is the second that CUDA_VISIBLE_DEVICES leaves.",
)
graph_option = option(
    "--graph/--no-graph",
    default=False,
    help="Launch the step's forward and backward pass as one CUDA graph: same bits, less work for the host.",
)
json_option = option("--json", "as_json", is_flag=True, help="Print JSON.")


def chosen_recipe(context: click.Context, base: settings.Recipe, values: dict[str, Any]) -> settings.Recipe:
    """Return `base` with the options that were given, on the command line or in the environment."""
    given: dict[str, Any] = {
        name: settings.parse_cycles(value) if name == "cycles" else value
        for name, value in values.items()
        if not is_default(context, name)
    }
    return replace(base, **given)


def is_default(context: click.Context, name: str) -> bool:
    """Return whether an option was given neither on the command line nor in the environment."""
    return context.get_parameter_source(name) == click.core.ParameterSource.DEFAULT


def sources(data: tuple[str, ...], demo: bool) -> tuple[str, ...]:
    """Return where the data comes from, for `Placement.data`."""
    if data and demo:
        raise click.UsageError("--demo generates its data: leave --data out")
    return (settings.DEMO_DATA,) if demo else data
