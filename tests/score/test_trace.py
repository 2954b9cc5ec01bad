"""What counts as depending on the image, what is computed ahead of time, and what cannot be counted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from job.errors import DataError, UsageError
from job.score.rules import score
from job.score.tally import LayerRow, Tally
from job.score.trace import trace

S = (2, 3, 4)
X = 24


class Model(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Any], **tensors: Tensor) -> None:
        super().__init__()
        self.run = forward
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def official(model: nn.Module, shape: tuple[int, ...] = S) -> Tally:
    return score(model, shape, ["official"], freebie=False).rule_sets["official"]


def stored(model: nn.Module, shape: tuple[int, ...] = S) -> dict[str, int]:
    return {value.name: int(value.counted) for value in official(model, shape).values}


def operators(model: nn.Module) -> list[str]:
    return [operation.name for operation in trace(model, S).operations]


def test_what_reads_no_activation_is_computed_ahead_and_its_result_stored() -> None:
    model = Model(lambda m, x: x + (m.a * 2).exp() @ m.b, a=torch.ones(3, 5), b=torch.ones(5, 4))
    assert official(model).total == X
    assert stored(model) == {"(aten.mm)": 12}
    normed = parametrizations.weight_norm(nn.Linear(4, 3))
    assert stored(normed, (4,)) == {"parametrizations.weight.0.(aten._weight_norm_interface)": 12, "bias": 3}


def test_a_moved_constant_is_the_stored_one() -> None:
    model = Model(lambda m, x: x @ m.a.t()[1:].reshape(4, 4) + m.a.float()[0, 0], a=torch.ones(4, 5))
    assert stored(model) == {"a": 20}


def test_values_are_stored_once_however_often_they_are_read() -> None:
    shared = nn.Linear(4, 4, bias=False)
    tied = nn.Linear(4, 4, bias=False)
    tied.weight = shared.weight
    tally = official(nn.Sequential(shared, shared, tied), (4,))
    assert tally.parameters == 16
    assert tally.total == 3 * (16 + 12)


def test_values_that_inference_does_not_read_are_not_needed() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.unused = nn.Linear(100, 100)  # not in the sequence
    model.forward = model[0].forward  # type: ignore[method-assign]
    scores = score(model, (4,), freebie=False)
    assert scores.rule_sets["official"].parameters == 20
    # The rule sets of 2019 count the parameters that the model has.
    assert scores.rule_sets["writeup"].parameters == 20 + 100 * 100 + 100


def test_a_tensor_that_is_no_parameter_is_stored_and_a_number_is_code() -> None:
    table = torch.ones(3, 4)
    model = Model(lambda m, x: (x * table + torch.tensor(0.5)) * 0.2)
    assert stored(model) == {"(tensor)": 12}


def test_an_activation_written_into_a_constant_makes_it_one() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        canvas = torch.zeros(1, 2, 3, 4)
        row = canvas[:, 0]
        row.copy_(x[:, 1])
        return canvas.exp() + row

    assert official(Model(forward)).total == X + X


def test_operators_that_work_in_place_count_and_keep_the_order_of_things() -> None:
    conv = nn.Conv2d(2, 2, 1, bias=False)
    norm = nn.BatchNorm2d(2)

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv, norm

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y[:, 0] += 1  # through a view: the batch norm's input is not the convolution any more
            return F.relu_(self.norm(y))

    tally = official(InPlace())
    kinds = {line.kind: (line.multiplications, line.additions) for line in tally.lines}
    assert kinds == {"conv": (24 * 2, 24), "add": (0, 12), "norm": (24, 24), "relu": (24, 0)}


def test_detours_around_autograd_are_followed() -> None:
    assert operators(Model(lambda m, x: (x.exp().data + 1).detach())) == [
        "aten.exp",
        "aten.detach",
        "aten.add",
        "aten.detach",
    ]


def test_dropout_is_gone_at_inference_and_the_mode_of_the_model_stays() -> None:
    model = nn.Sequential(nn.Dropout(), nn.ReLU(), nn.Dropout2d()).train()
    assert operators(model) == ["aten.relu"]
    assert model.training


def test_an_unknown_operator_is_named_with_its_place() -> None:
    model = nn.Sequential(nn.ReLU(), Model(lambda m, x: torch.special.bessel_j0(x)))
    with pytest.raises(UsageError) as failure:
        score(model, S)
    assert "aten.special_bessel_j0, which layer 1 calls at test_trace.py:" in str(failure.value)
    assert "--allow-unknown" in failure.value.fix


def test_unknown_operators_are_listed_where_they_are_allowed() -> None:
    model = nn.Sequential(nn.ReLU(), Model(lambda m, x: torch.special.bessel_j0(x)))
    scores = score(model, S, allow_unknown=True)
    (unknown,) = scores.to_json()["official"]["unknown"]
    assert unknown["operator"] == "aten.special_bessel_j0"
    assert unknown["layer"] == "1"
    assert scores.rule_sets["official"].total == X / 2


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x + torch.rand(4),  # no one can compute it ahead of time
        lambda m, x: F.dropout(x, training=True),
        lambda m, x: x * float(x.sum()),  # leaves torch, and comes back as a number
        lambda m, x: torch.linalg.svd(x)[1],
        lambda m, x: torch.fft.fft(x),
    ],
)
def test_nothing_is_silently_zero(function: Callable[[Any, Tensor], Any]) -> None:
    with pytest.raises(UsageError, match="no rule counts"):
        score(Model(function), S)


def test_a_result_from_outside_torch_is_refused() -> None:
    with pytest.raises(DataError, match="does not come from its input"):
        score(Model(lambda m, x: torch.from_numpy(x.numpy() * 2)), S)


def test_an_image_of_another_shape_is_refused_with_the_option() -> None:
    with pytest.raises(DataError, match="does not run on an image of 4,8,8") as failure:
        score(nn.Conv2d(3, 2, 3), (4, 8, 8))
    assert "--input" in failure.value.fix


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = nn.Linear(4, 4)
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UsageError, match="cannot be copied"):
        score(model, (4,))


def test_layers_are_named_by_their_path() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()), Model(lambda m, x: F.relu(x)))
    assert [line.layer for line in official(model).lines] == ["0.0", "0.1", "1"]
    rows = official(model).layers()
    assert rows[0] == LayerRow(
        layer="0.0", kind="conv", multiplications=48, additions=24 + 24, counted=96, parameters=6
    )


def test_every_parameter_is_in_some_row() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 2, 1), Model(lambda m, x: torch.cat([x, m.token]), token=torch.ones(1, 2, 3, 4))
    )
    tally = official(model)
    assert sum(row.parameters for row in tally.layers()) == tally.parameters == 6 + 24


def test_scripted_and_compiled_models_are_counted_too() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())
    expected = official(model).total
    assert official(torch.jit.script(model)).total == expected
    compiled = torch.compile(model)
    assert isinstance(compiled, nn.Module)
    assert official(compiled).total == expected


def test_a_double_precision_value_counts_twice() -> None:
    tally = official(nn.Linear(4, 3, bias=False).double(), (4,))
    assert tally.parameters == 24


@pytest.mark.parametrize("side", [10**6, 10**12, 10**30])
def test_an_image_that_no_memory_holds_is_refused(side: int) -> None:
    with pytest.raises(DataError, match=f"an image of 3,{side},{side} .*--input"):
        trace(nn.Sequential(nn.Conv2d(3, 2, 1)), (3, side, side))
