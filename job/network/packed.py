"""A quantised network's tensors in as few bits as the score counts: levels, bit masks, step sizes, norms.

Of each layer: `weight.levels`, the levels from the lowest on in packed integers of their bits, of the
non-zero ones where there is a `weight.mask` (a bit a weight); `weight_step` and `input_step`. Of each batch
norm `scale` and `shift`, folded of its statistics and its affine. Biases as they are.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from job.network import compressed
from job.network.compressed import weight_levels


@torch.no_grad()
def pack(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a quantised network, by name."""
    tensors: dict[str, Tensor] = {}
    for name, layer in compressed.layers(network):
        bits = layer.bits
        assert bits is not None
        levels = compressed.integer_levels(layer).flatten().cpu().numpy().astype(np.int16)
        kept = levels != 0
        low, _ = weight_levels(bits.weight)
        if _is_sparse(kept, bits.weight):
            tensors[f"{name}.weight.mask"] = torch.from_numpy(np.packbits(kept))
            levels = levels[kept]
        codes = (levels > 0) if bits.weight == 1 else levels - low
        tensors[f"{name}.weight.levels"] = torch.from_numpy(
            pack_integers(codes.astype(np.uint8), bits.weight)
        )
        tensors[f"{name}.weight_step"] = _host(layer.weight_step)
        tensors[f"{name}.input_step"] = _host(layer.input_step)
        if layer.bias is not None:
            tensors[f"{name}.bias"] = _host(layer.bias)
    for name, norm in _norms(network):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        tensors[f"{name}.scale"] = _host(scale)
        tensors[f"{name}.shift"] = _host(norm.bias - norm.running_mean * scale)
    return tensors


def unpack(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give `network`, quantised and on the meta device, the weights of `pack`.

    Each batch norm has its scale and shift as its affine. What is allocated is bounded by the tensors' size.
    Raises ValueError where they are not those of this network, or not finite.
    """
    known = set()

    def take(name: str, dtype: torch.dtype, shape: torch.Size | None = None) -> Tensor:
        known.add(name)
        tensor = tensors[name]
        if tensor.dtype != dtype or (shape is not None and tensor.shape != shape) or tensor.ndim > 1:
            raise ValueError(f"{name} is of {tensor.dtype} and {tuple(tensor.shape)}")
        if dtype.is_floating_point and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} has values that are not finite")
        return tensor

    state: dict[str, Tensor] = {}
    for name, layer in compressed.layers(network):
        assert layer.bits is not None
        steps = {kind: take(f"{name}.{kind}", torch.float32, torch.Size()) for kind in STEPS}
        if min(steps.values()) <= 0:
            raise ValueError(f"a step size of {name} is not positive")
        bits, (low, _), count = layer.bits.weight, weight_levels(layer.bits.weight), layer.weight.numel()
        kept = np.ones(0, np.bool_)
        if f"{name}.weight.mask" in tensors:
            kept = _bits(take(f"{name}.weight.mask", torch.uint8), count, f"{name}.weight.mask")
        stored = int(kept.sum()) if len(kept) else count
        packed = take(f"{name}.weight.levels", torch.uint8).numpy()
        codes = unpack_integers(packed, bits, stored, f"{name}.weight.levels").astype(np.int16)
        values = codes * 2 - 1 if bits == 1 else codes + low
        levels = values
        if len(kept):
            if not values.all():
                raise ValueError(f"{name}.weight.mask keeps a weight that is 0")
            levels = np.zeros(count, np.int16)
            levels[kept] = values
        weight = torch.from_numpy(levels).float() * steps["weight_step"]
        state[f"{name}.weight"] = weight.view(layer.weight.shape)
        state[f"{name}.mask"] = torch.from_numpy(levels != 0).view(layer.weight.shape)
        state |= {f"{name}.{kind}": step for kind, step in steps.items()}
        if layer.bias is not None:
            state[f"{name}.bias"] = take(f"{name}.bias", torch.float32, layer.bias.shape)
    for name, norm in _norms(network):
        state[f"{name}.weight"] = take(f"{name}.scale", torch.float32, norm.weight.shape)
        state[f"{name}.bias"] = take(f"{name}.shift", torch.float32, norm.weight.shape)
        state[f"{name}.running_mean"] = torch.zeros(norm.weight.shape)
        state[f"{name}.running_var"] = torch.ones(norm.weight.shape)
        state[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
        norm.eps = 0.0  # so that nothing but the scale and the shift is computed
    if unknown := tensors.keys() - known:
        raise ValueError(f"{min(unknown)} is not of this network")
    network.load_state_dict(state, assign=True)


STEPS = ("weight_step", "input_step")


def pack_integers(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return integers [n] of `bits` bits each, the lowest first, in ceil(n bits / 8) bytes."""
    return np.packbits((values[:, None] >> np.arange(bits, dtype=np.uint8)) & 1)


def unpack_integers(packed: NDArray[np.uint8], bits: int, count: int, name: str) -> NDArray[np.uint8]:
    """Return the `count` integers that `pack_integers` packed; ValueError where there are not so many."""
    flags = _bits(torch.from_numpy(packed), count * bits, name).reshape(count, bits)
    return np.packbits(flags, axis=1, bitorder="little")[:, 0]


def _bits(packed: Tensor, count: int, name: str) -> NDArray[np.bool_]:
    if packed.numel() != -(-count // 8):
        raise ValueError(f"{name} has {packed.numel()} bytes for {count} bits")
    flags = np.unpackbits(packed.numpy())
    if flags[count:].any():
        raise ValueError(f"{name} has bits after its last one")
    return flags[:count].astype(np.bool_)


def _is_sparse(kept: NDArray[np.bool_], bits: int) -> bool:
    """Return whether a mask and the other levels take no more bits than all levels; of signs none is 0."""
    zeros = len(kept) - int(kept.sum())
    return zeros > 0 and (bits == 1 or zeros * bits >= len(kept))


def _norms(network: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    return [(name, part) for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)]


def _host(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
