"""Small networks with random weights, as after a training."""

from __future__ import annotations

import torch
from torch import nn

from job.network import compressed
from job.network.weights import NetworkInfo

CLASSES = ("a<b", 'c"d', "é")
INFO = NetworkInfo(10, 1, CLASSES, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), "0" * 64)


def network(bits: tuple[int, int] | None = None) -> nn.Sequential:
    """A network whose batch norms do something, as after a training; pruned and quantised to `bits`."""
    torch.manual_seed(3)
    network = INFO.build_compressed() if bits else INFO.build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                assert tensor is not None
                nn.init.uniform_(tensor, low, low + 1)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 2)
    if bits:
        compressed.prune(network, 0.75)
        compressed.quantise(network, *bits)
        compressed.calibrate(network, torch.randn(64, 3, 32, 32), network)
    return network
