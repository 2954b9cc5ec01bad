"""The options that commands share, made from the settings' fields, each with its environment variable."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from job import settings
from job.errors import UsageError
from job.phases import Cycle, format_cycles, parse_cycles
from job.recipe import RECIPES, Recipe
from job.settings import AttemptSettings, DataSettings, DeviceSettings, Placement, PretrainedSettings

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = type[Recipe | Placement | DataSettings | PretrainedSettings | DeviceSettings | AttemptSettings]


def option(name: str, *declarations: str, **attributes: Any) -> Callable[[Command], Command]:
    """Return a click option that has an environment variable and shows it with its default."""
    variable = "MICRONET_" + name.split("/")[0].lstrip("-").upper().replace("-", "_")
    attributes = {"show_default": True} | attributes
    return click.option(name, *declarations, envvar=variable, show_envvar=True, **attributes)


class Seconds(click.ParamType[float]):
    """A time as `90`, `90s`, `90 s`, `5m` or `1h`; the command gets seconds."""

    name = "time"

    def __init__(self, zero: bool = False) -> None:
        self.zero = zero  # whether 0 is allowed

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """Return the seconds; fail for what is not a positive time."""
        text = str(value)
        factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
        try:
            seconds = float(text[:-1]) * factor if factor else float(text)
        except ValueError:
            seconds = -1
        if not 0 <= seconds < float("inf") or (seconds == 0 and not self.zero):
            self.fail(f"{text!r} is not a time; write for example 90, 90s or 5m", parameter, context)
        return seconds


class Pair(click.ParamType[tuple[str, str]]):
    """`NAME=VALUE`, with a name that matches the pattern `names`; the command gets both."""

    name = "pair"

    def __init__(self, names: str) -> None:
        self.names = re.compile(names)

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, str]:
        """Return the name and the value; fail where one is missing."""
        name, _, text = str(value).partition("=")
        if not (self.names.fullmatch(name) and text):
            self.fail(f"{name!r} is not NAME=VALUE", parameter, context)  # the value may be a secret
        return name, text


class Cycles(click.ParamType[tuple[Cycle, ...]]):
    """One-cycle periods as `200@5e-3,200@5e-4`."""

    name = "cycles"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[Cycle, ...]:
        """Return the cycles; raise UsageError for what is not a list of them."""
        option = parameter.opts[0].lstrip("-") if parameter else self.name
        return parse_cycles(value, option)


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


class Processes(click.ParamType[str]):
    """A number of processes from 1, or `auto`."""

    name = "processes"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """Return it as text; fail for what is neither."""
        text = str(value)
        if text != "auto" and not re.fullmatch(r"[1-9]\d{0,3}", text):
            self.fail(f"{text!r} is neither a number from 1 nor auto", parameter, context)
        return text


def setting_option(
    owner: Settings, name: str, *, flag: str | None = None, **changes: Any
) -> Callable[[Command], Command]:
    """Return the option of a field of the settings; `changes` are click's attributes for this command.

    Without a `flag` its name is the field's.
    """
    setting, default = settings.setting_of(owner, name)
    attributes: dict[str, Any] = {"help": setting.help, "metavar": setting.metavar}
    if default is not None:  # to click a default of None is a value, which `required` then takes
        attributes |= {"default": default}
    declarations = (name,) if flag else ()
    flag = flag or f"--{name.replace('_', '-')}"
    if isinstance(default, bool):
        flag += f"/--no-{flag[2:]}" if owner is Recipe else ""
        attributes |= {"is_flag": True}
    elif setting.choices:
        attributes |= {"type": click.Choice(setting.choices)}
    elif setting.unit == "s":
        kind = SECONDS_OR_NEVER if setting.minimum == 0 else SECONDS
        attributes |= {"type": kind, "default": f"{default:g} s", "metavar": "TIME"}
    elif name.endswith("cycles"):
        attributes |= {"type": Cycles(), "default": format_cycles(default)}
    elif type(default) is int:
        attributes |= {"type": click.IntRange(setting.minimum, setting.maximum)}
    elif isinstance(default, float):
        attributes |= {"type": click.FloatRange(setting.minimum, setting.maximum)}
    elif isinstance(default, tuple):
        attributes |= {"multiple": True}
    elif callable(default):
        attributes |= {"show_default": False}  # its help says it
    return option(flag, *declarations, **(attributes | changes))


def recipe_options(command: Command) -> Command:
    """Add an option for each field of the recipe that has a setting; the command gets them as keywords."""
    for name in reversed(settings.settings_of(Recipe)):
        command = setting_option(Recipe, name)(command)
    return command


data_option = setting_option(DataSettings, "data")
cache_option = setting_option(DataSettings, "cache")
store_cache_option = setting_option(DataSettings, "store_cache")
device_option = setting_option(DeviceSettings, "device", type=Device())
any_device_option = setting_option(
    DeviceSettings,
    "device",
    type=Device(),
    help="auto: the first GPU, or the processor if there is none. cuda: the first GPU. cuda:1: the second "
    "that CUDA_VISIBLE_DEVICES leaves.",
)
processes_option = setting_option(DeviceSettings, "processes", type=Processes())
graph_option = setting_option(DeviceSettings, "graph")
demo_option = option(
    "--demo", is_flag=True, help="Use a generated data set and a recipe that takes minutes on a processor."
)
recipe_option = option(
    "--recipe",
    "named",
    type=click.Choice(tuple(RECIPES)),
    help="entry: the 2019 entry. compact: entry, then pruned and quantised. demo, demo-compact: small "
    "versions on generated data. Other options override fields. Default: entry, with --demo demo.",
)
start_option = setting_option(PretrainedSettings, "start", flag="--from")
teacher_option = setting_option(PretrainedSettings, "teacher")
demo_data_option = option("--demo", is_flag=True, help="Use the generated data set of `train --demo`.")
trained_data_option = setting_option(
    DataSettings,
    "data",
    help="Archive of the data that the weights were trained on: a path, https://, file://, s3:// or gs:// "
    "address. Default: what the run's report names.",
)
json_option = option("--json", "as_json", is_flag=True, help="Print JSON.")


def chosen_recipe(
    context: click.Context, demo: bool, named: str | None, values: dict[str, Any], start: str | None = None
) -> Recipe:
    """Return the named recipe with the options that were given, in the environment too.

    One that starts with a run's weights has no dense cycles. Raises UsageError where they are given.
    """
    given = {name: value for name, value in values.items() if not is_default(context, name)}
    base = RECIPES[named or ("demo" if demo else "entry")]
    if start:
        if given.get("cycles"):
            raise UsageError("--from starts where --cycles have ended", "Leave --cycles out")
        if not (base.compresses or given.get("prune_cycles") or given.get("quantise_cycles")):
            raise UsageError(
                "--from: nothing in this recipe follows the dense cycles", "Use --recipe compact"
            )
        given["cycles"] = ()
    elif given.get("cycles") == ():
        raise UsageError("--cycles none trains no network first", "Name a finished run with --from")
    return replace(base, **given)


def is_demo(demo: bool, named: str | None, data: tuple[str, ...]) -> bool:
    """Return whether the generated data is meant, by --demo or by the recipe's name."""
    return demo or bool(named and named.startswith("demo") and not data)


def chosen_device(device: str, gpu_required: bool) -> str:
    """Return `device` as `job.machine.device.choose` takes it: `auto` is a GPU, or "any" device."""
    return "any" if device == "auto" and not gpu_required else device


def is_default(context: click.Context, name: str) -> bool:
    """Return whether an option was given neither on the command line nor in the environment."""
    return context.get_parameter_source(name) == click.core.ParameterSource.DEFAULT


def sources(data: tuple[str, ...], demo: bool) -> tuple[str, ...]:
    """Return where the data comes from, for `DataSettings.data`; raise click's UsageError for two places."""
    if data and demo:
        raise click.UsageError("--demo generates its data: leave --data out")
    return (settings.DEMO_DATA,) if demo else data
