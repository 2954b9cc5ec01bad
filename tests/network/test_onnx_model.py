"""The ONNX file of a network with random weights: what goes in and out, and what must not be in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from job.network import compressed, weights
from job.network.onnx_model import OPSET, FromPixels, encode
from job.train.loader import Normalisation
from tests.network.networks import CLASSES, INFO, network


@pytest.fixture(scope="module")
def model() -> bytes:
    return encode(network(), INFO)


def test_it_maps_pixels_to_logits_for_any_number_of_images(model: bytes) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    ((pixels,), (logits,)) = session.get_inputs(), session.get_outputs()
    assert (pixels.name, pixels.type, pixels.shape) == ("pixels", "tensor(uint8)", ["images", 3, 32, 32])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["images", 3])
    for count in (1, 2, 7):
        images = np.random.default_rng(count).integers(0, 256, (count, 3, 32, 32), np.uint8)
        found = session.run(None, {"pixels": images})[0]
        normalised = torch.from_numpy(images).double() / 255
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (INFO.mean, INFO.std))
        with torch.inference_mode():
            expected = network().eval().double()((normalised - mean) / std)
        assert expected.std() > 0.1
        assert np.abs(found - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("weight", "activation", "integer"), [(4, 4, "UINT4"), (3, 2, "UINT4"), (1, 8, "UINT8")]
)
def test_a_quantised_network_has_integers_and_qdq_pairs(weight: int, activation: int, integer: str) -> None:
    packed = weights.save(network((weight, activation)), INFO)
    trained, _ = weights.load(packed)
    model = encode(trained, INFO)
    graph = onnx.load_from_string(model).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    layers = dict(compressed.layers(trained))
    for name, layer in layers.items():
        assert layer.bits is not None
        levels, kind = stored[f"network.{name}.levels"], "INT8" if name in ("stem", "linear") else "INT4"
        assert levels.data_type == onnx.TensorProto.DataType.Value(kind)
        step = onnx.numpy_helper.to_array(stored[f"network.{name}.weight_step"])
        weight_values = torch.from_numpy(onnx.numpy_helper.to_array(levels).astype(np.float32) * step)
        assert torch.equal(weight_values, compressed.quantised_weight(layer, layer.bits.weight).detach())
    kinds = [node.attribute[0].i for node in graph.node if node.op_type == "QuantizeLinear"]
    assert sum(node.op_type == "DequantizeLinear" for node in graph.node) == len(kinds) + len(layers)
    assert {onnx.TensorProto.DataType.Name(kind) for kind in kinds} == {"INT8", "UINT8", integer}
    assert len(model) < 3 * len(packed) + 50_000

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (200, 3, 32, 32), np.uint8)
    with torch.inference_mode():
        expected = FromPixels(trained, INFO).eval()(torch.from_numpy(images))
    differences = np.abs(session.run(None, {"pixels": images})[0] - expected.numpy()).max(1)
    assert expected.std(0).min() > 0.005
    assert (differences < 1e-5).mean() > 0.8  # the others have a value at the edge between two levels
    assert differences.max() < 0.05


def test_it_is_valid_and_names_its_opset_and_classes(model: bytes) -> None:
    parsed = onnx.load_from_string(model)
    onnx.checker.check_model(parsed, full_check=True)
    assert [(each.domain, each.version) for each in parsed.opset_import] == [("", OPSET)]
    properties = {entry.key: entry.value for entry in parsed.metadata_props}
    assert properties == {"classes": json.dumps(CLASSES), "data_sha256": "0" * 64}


def test_nothing_of_this_machine_is_in_it(model: bytes) -> None:
    for words in (str(Path.cwd()), sys.prefix, "job.network", ".py", "forward"):
        assert words.encode() not in model


def test_another_process_writes_the_same_bytes(model: bytes, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from job.network.onnx_model import encode;"
        "from tests.network.networks import INFO, network;"
        f"Path({str(tmp_path / 'again')!r}).write_bytes(encode(network(), INFO))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
    assert (tmp_path / "again").read_bytes() == model


def test_the_network_is_left_as_it_was() -> None:
    trained = network().train()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    encode(trained, INFO)
    assert trained.training
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_the_normalisation_is_the_trainings() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    normalise = Normalisation(INFO.mean, INFO.std, torch.device("cpu"))
    assert torch.equal(FromPixels(nn.Identity(), INFO)(images), normalise(images.float().div_(255)))
