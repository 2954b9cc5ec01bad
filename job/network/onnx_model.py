"""A trained network as an ONNX file: pixels in, logits out.

The input `pixels` is uint8 [images, 3, S, S], red, green and blue from 0 to 255 as they are in an image file;
the division by 255 and the normalisation are part of the network. The output `logits` is float32
[images, classes]. The names of the classes are a JSON list in the file's metadata, under `classes`.
"""

from __future__ import annotations

import copy
import json
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.errors import ConfigurationError
from job.network import compressed
from job.network.compressed import Layer
from job.network.weights import NetworkInfo

if TYPE_CHECKING:
    import onnx

OPSET = 21
"""The first whose QuantizeLinear has 4 bits."""

SIZE = 32  # pixels of an image's side

INTEGERS = {(False, False): 21, (False, True): 22, (True, False): 2, (True, True): 3}
"""ONNX's numbers of UINT4, INT4, UINT8 and INT8, by whether more than 4 bits are needed, and a sign."""


class FromPixels(nn.Module):
    """`network` behind its normalisation, computed as in its training."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, info: NetworkInfo) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(info.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(info.std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map [N, 3, S, S] uint8 pixels to [N, classes] logits."""
        logits: Tensor = self.network((pixels.float() / 255 - self.mean) / self.std)
        return logits


class IntegerLayer(nn.Module):
    """A quantised layer as ONNX has them: integers, which DequantizeLinear multiplies by their step size.

    The weight is stored as its levels; what the layer reads goes through a pair of QuantizeLinear and
    DequantizeLinear.
    """

    levels: Tensor  # int8, which `encode` stores in 4 bits where those are enough
    weight_step: Tensor
    input_step: Tensor

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        assert layer.bits is not None
        self.layer, self.bits = layer, layer.bits
        low, high = compressed.levels(layer.bits.activation, layer.bits.signed)
        step = layer.input_step.item()
        self.limits = low * step, high * step
        self.register_buffer("levels", compressed.integer_levels(layer))
        self.register_buffer("weight_step", layer.weight_step.detach())
        self.register_buffer("input_step", layer.input_step.detach())

    def forward(self, read: Tensor) -> Tensor:
        """Map what the layer maps."""
        bits, signed = self.bits.activation, self.bits.signed
        if bits not in (4, 8):  # whose integers have no more levels
            read = read.clamp(*self.limits)
        integer = INTEGERS[bits > 4, signed]
        codes = torch.onnx.ops.symbolic(
            "QuantizeLinear",
            (read, self.input_step),
            {"output_dtype": integer},
            dtype=integer,
            shape=read.shape,
        )
        inputs, weight = _dequantise(codes, self.input_step), _dequantise(self.levels, self.weight_step)
        if isinstance(self.layer, nn.Conv2d):
            product: Tensor = self.layer._conv_forward(inputs, weight, self.layer.bias)
            return product
        return F.linear(inputs, weight, self.layer.bias)


def _dequantise(codes: Tensor, step: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic("DequantizeLinear", (codes, step), dtype=torch.float32, shape=codes.shape)


def encode(network: nn.Module, info: NetworkInfo) -> bytes:
    """Return `network`, which is on the host, as an ONNX file.

    Equal weights and versions of the packages give equal bytes. Raises ConfigurationError where the packages
    of the extra `onnx` are not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise ConfigurationError(
            f"the packages for ONNX are not installed ({error})", "Install them: ./setup.sh install onnx"
        ) from error
    network = copy.deepcopy(network)
    narrow = set()
    for name, layer in list(compressed.layers(network)):
        if layer.bits is not None:
            network.set_submodule(name, IntegerLayer(layer))
            if layer.bits.weight <= 4:
                narrow.add(f"network.{name}.levels")
    model = _traced(FromPixels(network, info).eval())
    for tensor in model.graph.initializer:
        if tensor.name in narrow:
            tensor.CopyFrom(_int4(tensor))
    _strip(model)
    onnx.helper.set_model_props(model, {"classes": json.dumps(info.classes), "data_sha256": info.data_sha256})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _traced(module: nn.Module) -> onnx.ModelProto:
    example = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations, which no user can act on
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            opset_version=OPSET,
        )
    assert program is not None
    return program.model_proto


def _int4(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Return an int8 tensor of values of 4 bits with two of them in a byte."""
    import ml_dtypes
    from onnx import numpy_helper

    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(ml_dtypes.int4), tensor.name)


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about this machine and its code: paths, traces, names of classes."""
    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
