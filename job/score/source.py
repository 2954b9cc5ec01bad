"""Where the network to be scored comes from: the default, saved weights, or the user's own code."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from job.errors import DataError, ExplainedError, UsageError
from job.network import weights
from job.network.wide_resnet import wide_resnet
from job.score.graph import Operation
from job.score.operations import OwnRule
from job.score.trace import described

MAX_REASON = 300  # characters: PyTorch names every tensor that is missing or not expected
PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".bin", ".ckpt", ".tar")
CONVERSION = (
    "import torch; from safetensors.torch import save_file; "
    "save_file(torch.load('{0}', weights_only=True), '{1}.safetensors')"
)


@dataclass(frozen=True)
class Subject:
    """A network and its name."""

    name: str
    network: nn.Module


def subject(checkpoint: str | None, factory: str | None, read: Callable[[str], bytes]) -> Subject:
    """Return the network that `checkpoint` and `factory` name; without either the default one.

    `checkpoint` is a path or URI, as `read` takes it, of a run or of a .safetensors file: of this program's,
    or, with `factory`, of the state dict of that model. `factory` is `package.module:callable`; it runs the
    user's own code.

    Raises UsageError if the factory cannot be imported, raises or makes no module, DataError if the file
    cannot be read as weights or does not fit.
    """
    if factory is not None:
        model = _made(factory)
        if checkpoint is None:
            return Subject(factory, model)
        try:
            model.load_state_dict(load_tensors(_read(checkpoint, read)))
        except (SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:MAX_REASON].rstrip(" .")
            raise DataError(
                f"{checkpoint} does not fit {factory}: {reason}", "Name a state dict of that model"
            ) from error
        return Subject(f"{factory} with {checkpoint}", model)
    if checkpoint is None:
        return Subject("WideResNet-22-6", wide_resnet())
    network, info = weights.load(_read(checkpoint, read))
    return Subject(f"WideResNet-{info.depth}-{info.width} of {checkpoint}", network)


def own_rule(name: str) -> OwnRule:
    """Return the user's function `package.module:function` that counts operators of their own.

    What it raises becomes a UsageError that names its frames.
    """
    function = _imported("--rule", name)

    @functools.wraps(function)
    def rule(operation: Operation) -> Any:
        return _called("--rule", name, function, operation)

    return rule


def input_shape(text: str) -> tuple[int, ...]:
    """Read `channels,height,width`, or another image's shape; raise UsageError for anything else."""
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(f"--input: {text!r} is not a shape", "Write for example --input 3,32,32")
    return shape


def use_one_thread() -> None:
    """Run torch on one thread in this process.

    One image takes 20 ms on one core; a second thread gains 10 ms, and on a busy machine costs a second,
    since each layer then waits for both (measured on two cores).
    """
    torch.set_num_threads(1)


def _read(uri: str, read: Callable[[str], bytes]) -> bytes:
    """Return what `read` reads at `uri`; raise DataError for a pickle, unread if its name says so."""
    if uri.lower().endswith(PICKLES):
        raise _is_pickled(uri)
    data = read(uri)
    if data[8:9] != b"{" and data[:1] in (b"P", b"\x80"):  # a zip archive or a bare pickle, not a header
        raise _is_pickled(uri)
    return data


def _is_pickled(uri: str) -> DataError:
    name = uri.rpartition("/")[2]
    command = CONVERSION.format(name, name.rpartition(".")[0] or name)
    return DataError(
        f"{uri} is a pickled checkpoint, which could run code when it is loaded",
        f'Convert its state dict once: python -c "{command}"',
    )


def _type(value: object) -> str:
    return f"a value of type {type(value).__name__}"


def _made(factory: str) -> nn.Module:
    function = _imported("--model", factory)
    if isinstance(function, nn.Module):
        raise UsageError(f"--model: {factory} is a module", "Name a function that makes it")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise UsageError(
            f"--model: {factory} is called without arguments: {error}",
            "Name a function that needs none, for example one that calls this one",
        ) from error
    except ValueError:
        pass  # some functions written in C have no signature
    model = _called("--model", factory, function)
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model: {factory} returned {_type(model)}, not a torch.nn.Module")
    return model


def _imported(option: str, name: str) -> Callable[..., Any]:
    """Return what `package.module:attribute` names; the working folder is searched too, from now on."""
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(f"{option}: {name!r} is not PACKAGE.MODULE:FUNCTION")
    # As `python -m` does: a console script does not search the working folder. It stays in the path, since
    # the user's code may import more when it is called.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module = _called(option, name, importlib.import_module, module_name)
    try:
        function = getattr(module, attribute)
    except AttributeError as error:
        raise UsageError(f"{option}: {module_name} has no {attribute!r}", "Name a function in it") from error
    if not callable(function):
        raise UsageError(f"{option}: {name} is {_type(function)}, not a function")
    result: Callable[..., Any] = function
    return result


def _called(option: str, name: str, function: Callable[..., Any], *arguments: object) -> Any:
    """Return what the user's `function` returns; what it raises becomes a UsageError with its frames."""
    try:
        return function(*arguments)
    except ExplainedError:
        raise
    except (Exception, SystemExit) as error:
        fix = "Run it where Python finds that module" if isinstance(error, ImportError) else ""
        raise UsageError(f"{option}: {name} raised {described(error)}", fix) from error
