"""A second opinion: torchstat's count of each layer that it counts as this counter does.

Only its plain counting functions are used, on the modules of the traced copy and on shapes: its `ModelHook`
would replace `__call__` on the layer classes of this process and register buffers on the model.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from job.errors import JobError
from job.score import formulas as f
from job.score.graph import Graph, Operation
from job.score.operations import TABLE

COUNTED: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("aten.convolution",),
    nn.Linear: ("aten.addmm", "aten.mm"),
    nn.AvgPool2d: ("aten.avg_pool2d",),
    nn.MaxPool2d: ("aten.max_pool2d_with_indices",),
    nn.ReLU: ("aten.relu",),
    nn.ReLU6: ("aten.hardtanh",),
}
"""The layers that torchstat counts as this counter does, and the operators that each of them calls.

Not its batch norm (4 operations an element, nothing folded), its transposed convolution (additions by the
input's positions) and its softmax (one sum over all dimensions).
"""

DIMENSIONS: dict[type[nn.Module], int] = {nn.Conv2d: 4, nn.Linear: 2, nn.AvgPool2d: 4, nn.MaxPool2d: 4}
"""Of the inputs that torchstat takes; its ReLU takes any."""


def _from_torchstat(name: str) -> Any:
    """Load torchstat's function `name` from its file: the package imports pandas, 0.5 s of processor time."""
    package = importlib.util.find_spec("torchstat")
    assert package is not None
    file = importlib.util.spec_from_file_location(name, Path(str(package.origin)).with_name(f"{name}.py"))
    assert file is not None
    assert file.loader is not None
    module = importlib.util.module_from_spec(file)
    file.loader.exec_module(module)
    return getattr(module, name)


if TYPE_CHECKING:
    from torchstat import compute_flops, compute_madd
else:
    compute_flops, compute_madd = _from_torchstat("compute_flops"), _from_torchstat("compute_madd")


def cross_check(graph: Graph) -> int:
    """Compare the count of each layer that torchstat can count; return how many there were.

    Raises JobError with both numbers where they differ.
    """
    calls = Counter(call.layer for call in graph.calls)
    modules = {call.layer: call.module for call in graph.calls if type(call.module) in COUNTED}
    own: dict[str, list[Operation]] = {layer: [] for layer in modules}
    for operation in graph.operations:
        module = modules.get(operation.layer)
        if module is not None and operation.name in COUNTED[type(module)]:
            own[operation.layer].append(operation)
    compared = 0
    for layer, module in modules.items():
        if len(own[layer]) != calls[layer]:
            continue  # a hook calls the layer's operator too: which one is the layer's own is not known
        operations = [operation for operation in own[layer] if _is_countable(module, operation)]
        theirs = _sum([_theirs(module, operation) for operation in operations])
        ours = _sum([_ours(module, operation) for operation in operations])
        if theirs != ours:
            raise JobError(
                f"torchstat counts {theirs[0]:,} multiplications and {theirs[1]:,} additions in layer"
                f" {layer or '(model)'}, this counter {ours[0]:,} and {ours[1]:,}",
                "Report it: one of the two counts is wrong",
            )
        compared += bool(operations)
    return compared


def _sum(counts: list[f.Cost]) -> f.Cost:
    return sum(multiplications for multiplications, _ in counts), sum(additions for _, additions in counts)


def _input(operation: Operation) -> tuple[int, ...]:
    return next(operand.shape for operand in operation.reads if operand.is_activation)


def _is_countable(module: nn.Module, operation: Operation) -> bool:
    shape = _input(operation)
    # torchstat's "MAdd" is that of one image, however many there are.
    return len(shape) == DIMENSIONS.get(type(module), len(shape)) and shape[:1] == (1,)


def _theirs(module: nn.Module, operation: Operation) -> f.Cost:
    """Return torchstat's multiplications and additions."""
    image = torch.empty(_input(operation), device="meta")
    result = torch.empty(operation.output.shape, device="meta")
    both = int(compute_madd(module, image, result))
    if isinstance(module, nn.MaxPool2d):
        return 0, both
    if isinstance(module, nn.AvgPool2d):  # one of the operations of each output is the division
        return result.numel(), both - result.numel()
    # Its "flops" are the multiplications, and for a convolution the additions of the bias.
    multiplications = int(compute_flops(module, image, result))
    if isinstance(module, nn.Conv2d) and module.bias is not None:
        multiplications -= result.numel()
    return multiplications, both - multiplications


def _ours(module: nn.Module, operation: Operation) -> f.Cost:
    terms = TABLE[operation.name].cost(operation, f.dense)
    if isinstance(module, nn.Linear):
        terms = terms[:2]  # torchstat leaves out the bias of a linear layer
    return sum(term.multiplications for term in terms), sum(term.additions for term in terms)
