"""Packed weights: the same bits back, the size that the score counts, and what hostile files come to."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from job.errors import DataError
from job.network import weights
from job.network.compressed import calibrate, layers, prune, quantise, quantised_weight
from job.network.packed import pack, pack_integers, unpack_integers
from job.network.weights import NetworkInfo
from job.score.rules import score

INFO = NetworkInfo(10, 1, ("cat", "dog", "eel"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "ab" * 32)
BITS = [(1, 8), (2, 3), (3, 1), (4, 4), (8, 8)]


def network(bits: tuple[int, int], sparsity: float = 0.75) -> nn.Sequential:
    torch.manual_seed(0)
    made = INFO.build_compressed().to(memory_format=torch.channels_last)
    images = torch.randn(16, 3, 32, 32)
    made(images)  # so that the norms have statistics
    prune(made, sparsity)
    quantise(made, *bits)
    calibrate(made, images, made)
    return made.eval()


@pytest.mark.parametrize("bits", BITS)
def test_the_file_gives_back_the_same_weights_and_answers(bits: tuple[int, int]) -> None:
    made = network(bits)
    data = weights.save(made, INFO)
    loaded, info = weights.load(data)
    loaded.eval()
    assert NetworkInfo(*(getattr(info, name) for name in INFO.__dict__)) == INFO
    theirs = dict(layers(loaded))
    for name, layer in layers(made):
        expected, found = (
            quantised_weight(each, each.bits.weight) for each in (layer, theirs[name]) if each.bits
        )
        assert torch.equal(expected, found)
        assert torch.equal(found, theirs[name].weight)
        assert layer.bits == theirs[name].bits
    images = torch.randn(64, 3, 32, 32)
    torch.testing.assert_close(loaded(images), made(images), rtol=1e-4, atol=1e-4)
    assert torch.equal(loaded(images).argmax(1), made(images).argmax(1))
    assert weights.save(loaded, INFO) == data
    assert torch.equal(weights.load(weights.save(loaded, INFO))[0].eval()(images), loaded(images))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_its_size_is_what_the_score_counts(bits: tuple[int, int], sparsity: float) -> None:
    made = network(bits, sparsity)
    tensors = pack(made)
    counted = float(score(made, rule_sets=["official"]).rule_sets["official"].parameters) * 4
    stored = sum(tensor.nbytes for tensor in tensors.values())
    # Each tensor ends with a whole byte. Of signs the score counts a zero point, a bit a layer. It has a mask
    # of the zeros of the stem, 54 bytes, and unpruned of other layers too, for the work that they save.
    assert stored - counted < len(tensors)
    if sparsity:
        assert counted - stored < 2 + 3 * 16 * 9 / 8


def test_a_pruned_network_is_saved_as_a_plain_one() -> None:
    torch.manual_seed(0)
    pruned = INFO.build_compressed()
    prune(pruned, 0.75)
    loaded, info = weights.load(weights.save(pruned, INFO))
    assert info == INFO
    assert loaded.state_dict().keys() == INFO.build().state_dict().keys()
    state = pruned.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_are_packed_and_unpacked(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, 101).astype(np.uint8)
    packed = pack_integers(values, bits)
    assert len(packed) == -(-101 * bits // 8)
    assert (unpack_integers(packed, bits, 101, "it") == values).all()


def changed(change: Callable[[dict[str, Tensor]], object], **fields: object) -> bytes:
    data = weights.save(network((4, 4)), INFO)
    tensors = load_tensors(data)
    change(tensors)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][weights.PACKED]
    return save_tensors(tensors, metadata={weights.PACKED: json.dumps({**json.loads(header), **fields})})


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: tensor})


def flip_mask(tensors: dict[str, Tensor]) -> None:
    tensors["block1.conv1.weight.mask"][0] ^= 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("block1.conv1.weight.levels"), "levels"),
        (lambda tensors: tensors.pop("bn.shift"), "shift"),
        (lambda tensors: tensors.pop("block1.conv1.weight.mask"), "bytes for"),
        (flip_mask, "bytes for|is 0"),
        (put("block1.conv1.weight.levels", torch.zeros(10**6, dtype=torch.uint8)), "bytes for"),
        (put("block1.conv1.weight.mask", torch.zeros(1, dtype=torch.uint8)), "bytes for"),
        (put("block1.conv1.weight.mask", torch.full((288,), 255, dtype=torch.uint8)), "bytes for"),
        (put("block1.conv1.weight.levels", torch.zeros(1152)), "torch.float32"),
        (put("stem.weight_step", torch.tensor(float("nan"))), "finite"),
        (put("stem.weight_step", torch.tensor(0.0)), "not positive"),
        (put("stem.input_step", torch.tensor(-1.0)), "not positive"),
        (put("stem.input_step", torch.ones(2)), r"\(2,\)"),
        (put("bn.scale", torch.full((64,), float("inf"))), "finite"),
        (put("bn.scale", torch.ones(3)), r"\(3,\)"),
        (put("another", torch.ones(3)), "another is not of this network"),
    ],
)  # fmt: skip
def test_a_changed_file_is_refused(change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        weights.load(changed(change))


@pytest.mark.parametrize(
    "fields",
    [
        {"weight_bits": 0},
        {"weight_bits": 9},
        {"activation_bits": 0},
        {"weight_bits": "4"},
        {"depth": 22},
        {"depth": 10**9 + 6},
        {"width": 1000},
        {"weight_bits": 5},
    ],
)
def test_a_changed_description_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(DataError):
        weights.load(changed(lambda tensors: None, **fields))
