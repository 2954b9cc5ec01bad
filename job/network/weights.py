"""Weights as a safetensors file that says by itself which network they belong to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from job.errors import DataError
from job.network.wide_resnet import wide_resnet

FORMAT = "micronet.weights/1"
MAX_SIZE = 1000  # of depth and width, so that a forged file cannot ask for a network without end


@dataclass(frozen=True)
class NetworkInfo:
    """What is needed, besides the tensors, to use a network: its shape, classes and normalisation."""

    depth: int
    width: int
    classes: tuple[str, ...]
    mean: tuple[float, float, float]  # of each channel over the training images, in [0, 1]
    std: tuple[float, float, float]
    data_sha256: str  # of the archive it was trained on

    def build(self) -> nn.Sequential:
        """Return the network with fresh weights."""
        return wide_resnet(self.depth, self.width, len(self.classes))


def save(network: nn.Module, info: NetworkInfo) -> bytes:
    """Return the state dict and `info` as one safetensors file; equal weights give equal bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    # One entry, since safetensors writes several in an order that changes from call to call.
    return save_tensors(tensors, metadata={FORMAT: json.dumps(asdict(info))})


def load(data: bytes) -> tuple[nn.Sequential, NetworkInfo]:
    """Rebuild the network that `save` wrote; no code is read from the file.

    Raises DataError if the file is not one of this program's, or its tensors do not fit its network.
    """
    try:
        tensors = load_tensors(data)
        info = _info(data)
        with torch.device("meta"):
            network = info.build()
        network.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError, SafetensorError) as error:
        raise DataError(
            f"these are not weights that this program saved ({type(error).__name__}: {error})",
            "Name a run's weights.safetensors",
        ) from error
    return network, info


def _info(data: bytes) -> NetworkInfo:
    """Read the header, which `safetensors` checks but does not hand out for bytes in memory."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    fields = json.loads(header["__metadata__"][FORMAT])
    mean, std = (tuple(map(float, fields[name])) for name in ("mean", "std"))
    if not (
        len(mean) == len(std) == 3 and 0 < fields["depth"] <= MAX_SIZE and 0 < fields["width"] <= MAX_SIZE
    ):
        raise ValueError("the network's description is out of bounds")
    return NetworkInfo(
        depth=int(fields["depth"]),
        width=int(fields["width"]),
        classes=tuple(map(str, fields["classes"])),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        data_sha256=str(fields["data_sha256"]),
    )
