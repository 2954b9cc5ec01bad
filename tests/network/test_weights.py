import json
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save as save_tensors

from job.errors import DataError
from job.network import weights
from job.network.weights import NetworkInfo

INFO = NetworkInfo(10, 1, ("cat", "dog", "eel"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "ab" * 32)


def test_weights_go_round_bit_for_bit_whatever_their_layout() -> None:
    network = INFO.build().to(memory_format=torch.channels_last)
    loaded, info = weights.load(weights.save(network, INFO))
    assert info == INFO
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert network.state_dict().keys() == loaded.state_dict().keys()


def test_equal_networks_give_equal_files() -> None:
    network = INFO.build()
    contiguous = weights.save(network, INFO)
    assert weights.save(network.to(memory_format=torch.channels_last), INFO) == contiguous


def altered(**fields: object) -> bytes:
    network = json.loads(json.dumps(INFO.__dict__)) | fields
    return save_tensors(INFO.build().state_dict(), metadata={weights.FORMAT: json.dumps(network)})


def headed(header: dict[str, object]) -> bytes:
    """A safetensors file of this header and nothing else."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 not safetensors",
        b"\xff" * 64,
        weights.save(INFO.build(), INFO)[:-1],
        save_tensors({"weight": torch.zeros(3)}),
        altered(depth=22),
        altered(width=2),
        altered(depth="__import__('os')"),
        altered(depth=6 * 10**9 + 4),
        altered(mean=[1.0]),
        altered(classes=None),
        headed({"__metadata__": None}),
    ],
    ids=[
        "empty",
        "zip",
        "noise",
        "short",
        "foreign",
        "deeper",
        "wider",
        "code",
        "endless",
        "mean",
        "classes",
        "null",
    ],
)
def test_what_is_not_our_weights_is_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        weights.load(data)


def with_tensor(change: Callable[[torch.Tensor], torch.Tensor]) -> bytes:
    tensors = dict(INFO.build().state_dict())
    tensors["linear.weight"] = change(tensors["linear.weight"]).contiguous()
    return save_tensors(tensors, metadata={weights.FORMAT: json.dumps(INFO.__dict__)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.Tensor.half, r"linear\.weight is of torch\.float16"),
        (torch.Tensor.bfloat16, r"linear\.weight is of torch\.bfloat16"),
        (torch.Tensor.double, r"linear\.weight is of torch\.float64"),
        (lambda tensor: tensor * float("nan"), r"linear\.weight has values that are not finite"),
        (lambda tensor: tensor.fill_(float("inf")), r"linear\.weight has values that are not finite"),
    ],
)
def test_weights_of_another_type_or_without_values_are_refused_by_name(
    change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    weights.load(with_tensor(lambda tensor: tensor))
    with pytest.raises(DataError, match=message):
        weights.load(with_tensor(change))


@pytest.mark.parametrize(
    "fields",
    [
        {"std": [0.0, 1.0, 1.0]},
        {"mean": [float("nan"), 1.0, 1.0]},
        {"depth": 10.0},
        {"width": True},
        {"classes": []},
        {"classes": ["\ud800"]},
        {"data_sha256": None},
    ],
)
def test_a_description_of_wrong_types_or_values_is_refused(fields: dict[str, object]) -> None:
    weights.load(altered())
    with pytest.raises(DataError):
        weights.load(altered(**fields))
