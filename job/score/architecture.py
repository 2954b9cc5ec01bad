"""Counts from the shapes alone, without bits or zeros: the 2019 entry's own, and torchstat's to compare with.

In the rule sets `writeup` and `leaderboard` a multiplication counts 1/2, an addition 1, a parameter 1, and
operators that they do not name nothing. Of torchstat only the plain counting functions are used, on the
modules of the traced copy and on shapes: its `ModelHook` would replace `__call__` on the layer classes of
this process and register buffers on the model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from job.errors import JobError
from job.score import formulas as f
from job.score.graph import Call, Graph, Operation
from job.score.operations import TABLE
from job.score.tally import Baseline, Line, Tally, Values

Count = Callable[[Operation], tuple[int, int] | None]


def writeup(graph: Graph, baseline: Baseline | None) -> Tally:
    """Count the convolutions and linear layers without their biases, and the average pools."""
    return _tally(graph, ("conv", "linear", "pool"), _writeup_count, baseline)


def leaderboard(graph: Graph, baseline: Baseline | None) -> Tally:
    """Count as `writeup`, and one multiplication for each element that a ReLU *module* passes."""
    return _tally(graph, ("conv", "linear", "pool", "relu"), _leaderboard_count, baseline)


def _tally(graph: Graph, kinds: tuple[str, ...], count: Count, baseline: Baseline | None) -> Tally:
    def lines() -> Iterator[Line]:
        for operation in graph.operations:
            counted = count(operation)
            if counted is not None:
                multiplications, additions = counted
                weighed = Fraction(multiplications, 2) + additions
                yield Line(
                    operation.layer,
                    TABLE[operation.name].kind,
                    operation.name,
                    multiplications,
                    additions,
                    weighed,
                    weighed,
                )

    values = tuple(
        Values(stored.name.rpartition(".")[0], stored.name, Fraction(stored.tensor.numel()))
        for stored in graph.parameters
    )
    return Tally(kinds, tuple(lines()), values, baseline)


def _writeup_count(operation: Operation) -> tuple[int, int] | None:
    row = TABLE.get(operation.name)
    if row is None or row.kind not in ("conv", "linear", "pool"):
        return None
    terms = row.cost(operation, f.dense)
    if row.kind == "linear" and all(operand.is_activation for operand in operation.reads):
        return None  # a product of two activations is no layer
    if row.kind != "pool":
        terms = terms[:2]  # the dot products, without biases
    multiplications = sum(term.multiplications for term in terms)
    additions = sum(term.additions for term in terms)
    if row.kind == "pool":
        additions += operation.output.numel  # hw additions a channel, where the rules need hw - 1
    return multiplications, additions


def _leaderboard_count(operation: Operation) -> tuple[int, int] | None:
    if issubclass(operation.layer_type, nn.ReLU | nn.ReLU6) and operation.name in (
        "aten.relu",
        "aten.hardtanh",
    ):
        return operation.output.numel, 0
    return _writeup_count(operation)


COUNTED = (nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.MaxPool2d, nn.ReLU, nn.ReLU6)
"""What torchstat counts as this counter does.

Not its batch norm (4 operations an element, nothing folded), its transposed convolution (additions by the
input's positions) and its softmax (one sum over all dimensions).
"""


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
    calls: dict[str, list[Call]] = {}
    for call in graph.calls:
        if _is_counted(call):
            calls.setdefault(call.layer, []).append(call)
    for layer, of_layer in calls.items():
        theirs = tuple(map(sum, zip(*map(_theirs, of_layer), strict=True)))
        ours = _ours(graph, layer)
        if theirs != ours:
            raise JobError(
                f"torchstat counts {theirs[0]:,} multiplications and {theirs[1]:,} additions in layer"
                f" {layer or '(model)'}, this counter {ours[0]:,} and {ours[1]:,}",
                "Report it: one of the two counts is wrong",
            )
    return len(calls)


def _is_counted(call: Call) -> bool:
    if type(call.module) not in COUNTED or len(call.input_shapes) != 1:
        return False
    shape = call.input_shapes[0]
    dimensions = {nn.Conv2d: 4, nn.Linear: 2, nn.AvgPool2d: 4, nn.MaxPool2d: 4}.get(
        type(call.module), len(shape)
    )
    return len(shape) == dimensions and shape[0] == 1  # its "MAdd" is that of one image, however many


def _theirs(call: Call) -> tuple[int, int]:
    """Return torchstat's multiplications and additions."""
    image = torch.empty(call.input_shapes[0], device="meta")
    result = torch.empty(call.output_shape, device="meta")
    both = int(compute_madd(call.module, image, result))
    if isinstance(call.module, nn.MaxPool2d):
        return 0, both
    if isinstance(call.module, nn.AvgPool2d):  # one of the operations of each output is the division
        return result.numel(), both - result.numel()
    # Its "flops" are the multiplications, and for a convolution the additions of the bias.
    multiplications = int(compute_flops(call.module, image, result))
    if isinstance(call.module, nn.Conv2d) and call.module.bias is not None:
        multiplications -= result.numel()
    return multiplications, both - multiplications


def _ours(graph: Graph, layer: str) -> tuple[int, int]:
    terms: list[f.Term] = []
    for operation in graph.operations:
        if operation.layer == layer and operation.name in TABLE:
            of_operation = TABLE[operation.name].cost(operation, f.dense)
            # torchstat leaves out the bias of a linear layer, the term after its dot products.
            terms += of_operation[:2] if operation.layer_type is nn.Linear else of_operation
    return sum(term.multiplications for term in terms), sum(term.additions for term in terms)
