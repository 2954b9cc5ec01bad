"""A trained network as an ONNX file: pixels in, logits out.

The input `pixels` is uint8 [images, 3, S, S], red, green and blue from 0 to 255 as they are in an image file;
the division by 255 and the normalisation are part of the network. The output `logits` is float32
[images, classes]. The names of the classes are a JSON list in the file's metadata, under `classes`.
"""

from __future__ import annotations

import copy
import json
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from job.errors import ConfigurationError
from job.network.weights import NetworkInfo

if TYPE_CHECKING:
    import onnx

OPSET = 21
"""The first whose QuantizeLinear has 4 bits."""

SIZE = 32  # pixels of an image's side


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


def encode(network: nn.Module, info: NetworkInfo) -> bytes:
    """Return `network`, which is on the host, as an ONNX file.

    Equal weights and versions of the packages give equal bytes. Raises ConfigurationError where the packages
    of the extra `onnx` are not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise not_installed(error) from error
    model = _traced(FromPixels(copy.deepcopy(network), info).eval())
    _strip(model)
    onnx.helper.set_model_props(model, {"classes": json.dumps(info.classes), "data_sha256": info.data_sha256})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def not_installed(error: ImportError) -> ConfigurationError:
    """Return what to raise where a package of the extra is missing."""
    return ConfigurationError(
        f"the packages for ONNX are not installed ({error})", "Install them: ./setup.sh install onnx"
    )


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


def _strip(model: Any) -> None:
    """Remove what the exporter notes about this machine and its code: paths, traces, names of classes."""
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
