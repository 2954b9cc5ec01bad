"""Autocast on the device: of the operators that CUDA casts (see torch.amp) those that are used here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

LOWER = ("conv2d", "linear", "matmul", "mm", "addmm", "bmm", "baddbmm")
FLOAT32 = (
    "softmax.int",
    "log_softmax.int",
    "nll_loss",
    "cross_entropy_loss",
    "logit",
    "exp",
    "log",
    "pow.Tensor_Scalar",
)
KEY = "AutocastPrivateUse1"


def kernels(device: str) -> list[torch.library.Library]:
    """Return the libraries that cast; every other operator falls through."""
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, KEY)
    library = torch.library.Library("aten", "IMPL")
    for name in LOWER:
        library.impl(name, _casting(name, lambda: torch.get_autocast_dtype(device)), KEY)
    for name in FLOAT32:
        library.impl(name, _casting(name, lambda: torch.float32), KEY)
    return [others, library]


def _casting(name: str, dtype: Callable[[], torch.dtype]) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEY))

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            wanted = dtype()
            args, kwargs = tree_map_only(Tensor, lambda tensor: _cast(tensor, wanted), (args, kwargs))
            return operator(*args, **kwargs)

    return kernel


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
