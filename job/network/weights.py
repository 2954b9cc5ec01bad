"""Weights as a safetensors file that also describes their network."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import ConfigDict, Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from job.errors import DataError
from job.network import compressed, packed
from job.network.wide_resnet import wide_resnet

FORMAT = "micronet.weights/1"
PACKED = "micronet.packed/1"
"""The format of a quantised network: see packed.py."""

MAX_SIZE = 1000  # of depth and width, so that a forged file cannot ask for an endless network


@dataclass(frozen=True)
class NetworkInfo:
    """What is needed in addition to the tensors to use a network: its shape, classes and normalisation."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True)

    depth: Annotated[int, Field(le=MAX_SIZE)]
    width: Annotated[int, Field(ge=1, le=MAX_SIZE)]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    mean: tuple[float, float, float]  # of each channel over the training images, in [0, 1]
    std: tuple[float, float, float]
    data_sha256: str  # of the archive it was trained on

    def build(self) -> nn.Sequential:
        """Return the network with fresh weights."""
        return wide_resnet(self.depth, self.width, len(self.classes))

    def build_compressed(self) -> nn.Sequential:
        """Return the network with the same fresh weights, in layers that can be pruned and quantised."""
        return compressed.build(self.depth, self.width, len(self.classes))


@dataclass(frozen=True)
class PackedInfo(NetworkInfo):
    """What is needed in addition to the tensors to use a quantised network."""

    weight_bits: Annotated[int, Field(ge=1, le=8)]
    activation_bits: Annotated[int, Field(ge=1, le=8)]


_INFO, _PACKED_INFO = TypeAdapter(NetworkInfo), TypeAdapter(PackedInfo)


def locate(uri: str, of_run: str) -> tuple[str, str]:
    """Return folder and file of the weights that `uri` names: a .safetensors file, or `of_run` in a run."""
    if not uri.endswith(".safetensors"):
        return uri, of_run
    folder, _, name = uri.rpartition("/")
    return ("/" if uri.startswith("/") and not folder else folder or "."), name


def save(network: nn.Module, info: NetworkInfo) -> bytes:
    """Return the weights and `info` as one safetensors file; equal weights give equal bytes.

    Those of a network that is pruned alone are a plain one's, zeros included; a quantised one's are packed.
    """
    bits = compressed.bits_of(network)
    # One entry, since safetensors writes several in an order that changes from call to call.
    if bits is not None:
        packed_info = {**asdict(info), "weight_bits": bits.weight, "activation_bits": bits.activation}
        return save_tensors(packed.pack(network), metadata={PACKED: json.dumps(packed_info)})
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if name.rpartition(".")[2] not in COMPRESSION
    }
    return save_tensors(tensors, metadata={FORMAT: json.dumps(asdict(info))})


COMPRESSION = ("mask", *packed.STEPS)
"""The last names of the tensors that a compressed network has in addition to those of a plain one."""


def load(data: bytes) -> tuple[nn.Sequential, NetworkInfo]:
    """Rebuild the network that `save` wrote; no code is read from the file.

    Raises DataError if the file is not one of this program's, its tensors do not fit its network, or a
    weight is not finite. Tensors of another type (a model converted to f16, say) are refused and not
    converted: the accuracy would be that of other weights.
    """
    try:
        tensors = load_tensors(data)
        info = _info(data)
        with torch.device("meta"):
            network = info.build_compressed() if isinstance(info, PackedInfo) else info.build()
        if isinstance(info, PackedInfo):
            compressed.quantise(network, info.weight_bits, info.activation_bits)
            packed.unpack(network, tensors)
            return network, info
        for name, expected in network.state_dict().items():
            if tensors[name].dtype != expected.dtype:
                raise ValueError(f"{name} is of {tensors[name].dtype} and not of {expected.dtype}")
            if not bool(tensors[name].isfinite().all()):
                raise ValueError(f"{name} has values that are not finite")
        network.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError, SafetensorError) as error:
        raise DataError(
            f"these are not weights that this program saved ({type(error).__name__}: {str(error)[:500]})",
            "Name a run's weights.safetensors",
        ) from error
    return network, info


def _info(data: bytes) -> NetworkInfo:
    """Read the header, which `safetensors` checks but does not return for bytes in memory."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__") or {}  # `safetensors` takes null for none
    packed_info = metadata.get(PACKED)
    info = _PACKED_INFO.validate_json(packed_info) if packed_info else _INFO.validate_json(metadata[FORMAT])
    if not all(math.isfinite(value) for value in (*info.mean, *info.std)) or min(info.std) <= 0:
        raise ValueError("the normalisation is not finite")
    return info
