"""What a CUDA graph does, on a processor: operators are recorded with their memory and plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def memory(values: object) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors(values)}


class Tape(TorchDispatchMode):
    """A `Recorder`.

    As in a graph, plain numbers such as a momentum are repeated as they were when recorded, and the results
    are garbage until the first replay.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        result = function(*arguments, **keywords)
        self.calls.append((function, arguments, keywords, result))
        return result

    def warm_up(self, function: Callable[[], None]) -> None:
        function()

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        kept = [buffer.clone() for buffer in self.network.buffers()]
        with self:
            result = function()
        for buffer, before in zip(self.network.buffers(), kept, strict=True):
            buffer.copy_(before)
        with torch._C._AutoDispatchBelowAutograd():
            for _, arguments, keywords, made in self.calls:
                for tensor in tensors(made):
                    if tensor.is_floating_point() and not memory(tensor) & memory((arguments, keywords)):
                        tensor.fill_(float("nan"))
        return result

    def replay(self) -> None:
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd():  # where the operators were recorded
            for function, arguments, keywords, result in self.calls:
                again = function(*arguments, **keywords)
                for made, value in zip(tensors(result), tensors(again), strict=True):
                    if made.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
                        made.copy_(value)
