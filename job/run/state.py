"""What a checkpoint of the training holds, and its bytes."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import AfterValidator, ConfigDict
from torch import Tensor, nn

from job.errors import DataError
from job.run import layout
from job.run.documents import Record
from job.run.manifests import Checkpoint
from job.run.records import Count, Epoch, Number, Place, Quantity, epochs

FORMAT = "micronet.state/1"
SLACK_BYTES = 2**24
"""Of a state's file, besides the tensors; the history of 600 epochs takes 90 kB."""

MAX_PICKLE_BYTES, MAX_OPCODES, MAX_TUPLES = 2**23, 1_000_000, 50_000
"""Of the part that is not tensors. Nesting is bounded with the tuples, which hashing walks on the C stack."""

COPIES = 3  # of the weights: themselves and Adam's two moments
MOMENTS = ("exp_avg", "exp_avg_sq")
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def _plain(tensor: Tensor) -> Tensor:
    """Refuse a tensor that is larger than its storage, or of a kind that the training has not."""
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ValueError("not a plain tensor")
    if tensor.dtype not in (torch.float32, torch.int64, torch.bool):
        raise ValueError(f"a tensor of {tensor.dtype}")
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise ValueError("a tensor larger than its storage")
    return tensor


def _scaler(state: dict[str, int | float]) -> dict[str, int | float]:
    if state and (state.keys() != SCALER or min(state.values()) < 0):
        raise ValueError("no state of a loss scale")
    return state


PlainTensor = Annotated[Tensor, AfterValidator(_plain)]


class TrainingState(Record):
    """A run between two steps, on the host. Nothing random is in it: that is a function of the position."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    epoch: Count  # from 0; the epoch and step that training continues with
    step: Count
    steps_per_epoch: Number
    network: dict[str, PlainTensor]  # parameters and buffers: of batch norms, and masks of zeros
    optimizer: list[dict[str, PlainTensor]]  # for each parameter in order; empty before the first step
    scaler: Annotated[dict[str, int | float], AfterValidator(_scaler)]  # of fp16's loss; else empty
    loss_total: PlainTensor  # of the epoch's steps so far, scalar float32
    epoch_seconds: Quantity  # spent on the epoch's steps so far, over all attempts
    history: list[Epoch]  # of the finished epochs

    @property
    def place(self) -> Place:
        """Where the training was."""
        return Place.of(self.epoch, self.step, self.steps_per_epoch)

    def is_finite(self) -> bool:
        """Return whether every weight and every moment is a number."""
        # numpy takes 5 ms of one thread for the default network; torch 29 ms of two, from the training.
        return all(bool(np.isfinite(tensor.numpy()).all()) for tensor in self._tensors())

    def encode(self) -> bytes:
        """Return the state as a file of tensors and plain values."""
        buffer = io.BytesIO()
        history = [record.to_json() for record in self.history]
        torch.save({"format": FORMAT, **dict(self), "history": history}, buffer)
        return buffer.getvalue()

    @classmethod
    def decode(cls, data: bytes, most: int) -> TrainingState:
        """Read what `encode` wrote, on the host, of at most `most` bytes (see `largest`); no code is read.

        Raises DataError.
        """
        _check_archive(data, most)
        try:
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # a hostile file makes torch raise anything
            raise _unreadable(f"{type(error).__name__}: {error}") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise _unreadable(f"not {FORMAT}")
        content["history"] = epochs(content.get("history"), "the state's history")
        state = cls.parse(content, "a checkpoint's state")
        if state.step > state.steps_per_epoch:
            raise _unreadable(f"it is at step {state.step} of {state.steps_per_epoch}")
        if state.loss_total.shape or not (state.is_finite() and bool(state.loss_total.isfinite())):
            raise _unreadable("its weights, moments or loss are not finite")
        return state

    @classmethod
    def of(cls, checkpoint: Checkpoint, most: int) -> TrainingState:
        """Return the state that a checkpoint of an unfinished run holds; otherwise as `decode`."""
        key = checkpoint.manifest.key
        if layout.STATE not in checkpoint.objects:
            raise DataError(f"{key} is a checkpoint without {layout.STATE}")
        state = cls.decode(checkpoint.objects[layout.STATE], most)
        if state.epoch != len(state.history):
            raise DataError(
                f"{key} is of epoch {state.epoch + 1} and has the history of {len(state.history)} epochs"
            )
        return state

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise DataError unless the optimizer's state is that of each of its parameters, or of none."""
        parameters = _parameters(optimizer)
        if not self.optimizer:
            return
        if len(self.optimizer) != len(parameters):
            raise _unreadable(f"it has moments of {len(self.optimizer)} of {len(parameters)} parameters")
        for number, (state, parameter) in enumerate(zip(self.optimizer, parameters, strict=True)):
            shapes = {name: value.shape for name, value in state.items()}
            expected = {"step": torch.Size(), **dict.fromkeys(MOMENTS, parameter.shape)}
            if shapes != expected or not all(value.is_floating_point() for value in state.values()):
                raise _unreadable(f"its moments of parameter {number} have other shapes")

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.network.values()
        for state in self.optimizer:
            yield from state.values()


def largest(network: Mapping[str, Tensor]) -> int:
    """Return how many bytes the state of a training of `network`, a state dict, may take."""
    return COPIES * sum(tensor.nbytes for tensor in network.values()) + SLACK_BYTES


def smallest(network: nn.Module) -> int:
    """Return how many bytes the tensors in a state of a training of `network` take; copies nothing."""
    weights: int = sum(parameter.nbytes for parameter in network.parameters())
    buffers: int = sum(buffer.nbytes for buffer in network.buffers())
    return COPIES * weights + buffers


def _check_archive(data: bytes, most: int) -> None:
    """Raise DataError unless `data` is a zip file of that size whose members are not compressed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if len(data) > most or unpacked > len(data):
                raise ValueError(f"it unpacks to {unpacked} bytes, more than the {most} of the network")
            for member in members:
                if member.filename.endswith(".pkl"):
                    _check_pickle(archive.read(member))
    except Exception as error:  # as above
        raise _unreadable(str(error)) from error


def _check_pickle(pickled: bytes) -> None:
    """Raise ValueError for a pickle that could keep its reader busy: long, or with tuples used twice.

    The hash of sixty tuples, each of the one before twice, takes 2^60 steps, which no signal ends.
    """
    if len(pickled) > MAX_PICKLE_BYTES:
        raise ValueError(f"its plain values take {len(pickled)} bytes")
    tuples, slots, on_top = 0, set(), False
    for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if "PUT" in opcode.name:
            slots |= {argument} if on_top else set()
        else:
            on_top = opcode.name.startswith("TUPLE")
            tuples += on_top
        if number > MAX_OPCODES or tuples > MAX_TUPLES or ("GET" in opcode.name and argument in slots):
            raise ValueError("its plain values are nested beyond bounds")


def _unreadable(reason: str) -> DataError:
    return DataError(
        f"a checkpoint holds no training state of this version ({reason[:300]})",
        "Resume with the version that wrote it, or start in a new --run",
    )


def copy_off(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the host, their layout kept; the device has then nothing left to do for a save."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def optimizer_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    """Copy each parameter's state (Adam: step and both moments) to the host, in the parameters' order."""
    return [copy_off(optimizer.state[p]) for p in _parameters(optimizer) if optimizer.state.get(p)]


def restore_optimizer(optimizer: torch.optim.Optimizer, states: list[dict[str, Tensor]]) -> None:
    """Restore each parameter's optimizer state, on the parameter's device and in its memory layout.

    A fused step on a GPU refuses a `step` on the host. It walks raw memory: moments laid out otherwise than
    their weights are updated wrongly and silently (0.019 off at lr 0.01 after a contiguous save of
    channels_last weights).
    """
    optimizer.state.clear()
    if not states:
        return
    for parameter, state in zip(_parameters(optimizer), states, strict=True):
        optimizer.state[parameter] = {
            name: value.to(parameter.device, copy=True)
            if value.ndim == 0
            else torch.empty_like(parameter).copy_(value)
            for name, value in state.items()
        }


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
