"""Where the network to be scored comes from: the default, saved weights, or the user's own code."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from job.errors import DataError, UsageError
from job.network import weights
from job.network.wide_resnet import wide_resnet
from job.store import open_store


def network(checkpoint: str | None = None, factory: str | None = None) -> nn.Module:
    """Return the network that `checkpoint` and `factory` name; without either the default one.

    `checkpoint` is a path or URI of a .safetensors file: of this program's, or, with `factory`, of the
    state dict of that model. `factory` is `package.module:callable`; it runs the user's own code.

    Raises UsageError if the factory cannot be imported or makes no module, DataError if the file cannot be
    read as weights or does not fit.
    """
    if factory is None:
        return wide_resnet() if checkpoint is None else weights.load(_read(checkpoint))[0]
    model = _call(factory)
    if checkpoint is not None:
        try:
            model.load_state_dict(load_tensors(_read(checkpoint)))
        except (SafetensorError, RuntimeError) as error:
            raise DataError(f"{checkpoint} does not fit {factory}: {error}") from error
    return model


def _read(uri: str) -> bytes:
    folder, _, name = uri.rpartition("/")
    root = "/" if uri.startswith("/") and not folder else folder or "."
    return open_store(root).get(name).data


def _call(factory: str) -> nn.Module:
    module_name, colon, attribute = factory.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(f"--model: {factory!r} is not PACKAGE.MODULE:FACTORY")
    # As `python -m` does: a console script does not look in the working folder by itself.
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"--model: {factory!r} cannot be imported: {error}", "Run it where Python finds that module"
        ) from error
    finally:
        sys.path.pop(0)
    model = function()
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model: {factory} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def input_shape(text: str) -> tuple[int, ...]:
    """Read `channels,height,width`, or another image's shape; raise UsageError if it is none."""
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(f"--input: {text!r} is no shape", "Write for example --input 3,32,32")
    return shape


def use_one_thread() -> None:
    """Run torch on one thread in this process.

    One image takes 20 ms on one core; a second thread gains 10 ms, and on a busy machine costs a second,
    since each layer then waits for both (measured on two cores).
    """
    torch.set_num_threads(1)
