"""Where a run's score comes from: its network, built again from the recipe, counted block by block."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

MAX_PARAMETERS = 200e6  # a forged recipe must not ask for a network without end
MAX_DEPTH, MAX_WIDTH = 1000, 100


@dataclass(frozen=True)
class Share:
    """What a block of the network adds to the score; `parameter_share` and `operation_share` are of 1."""

    block: str
    parameters: float
    operations: float
    parameter_share: float
    operation_share: float

    @property
    def share(self) -> float:
        """The block's share of the whole score."""
        return self.parameter_share + self.operation_share


def shares(report: dict[str, Any], recipe: dict[str, Any], classes: int) -> list[Share]:
    """Return the share of each top block under the `leaderboard` rules, in the network's order.

    Empty where recipe and report do not describe the same network of this program's.
    """
    import torch  # 1.5 s: a comparison of runs, and a run that is not finished, do without

    from job.network.wide_resnet import wide_resnet
    from job.score.rules import score

    depth, width, parameters = recipe.get("depth"), recipe.get("width"), report["model"]["parameters"]
    if not (type(depth) is type(width) is int and depth <= MAX_DEPTH and width <= MAX_WIDTH):
        return []
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in wide_resnet(depth, width, classes).parameters())
    except ValueError:
        return []
    if size != parameters or parameters > MAX_PARAMETERS:
        return []
    with torch.random.fork_rng(devices=[]):
        network = wide_resnet(depth, width, classes)
    tally = score(network, tuple(report["model"]["input_shape"]), ["leaderboard"]).rule_sets["leaderboard"]
    blocks: dict[str, list[Fraction]] = {}
    for row in tally.layers():
        sums = blocks.setdefault(row.layer.partition(".")[0], [Fraction(), Fraction()])
        sums[0] += Fraction(row.parameters)
        sums[1] += Fraction(row.counted)
    order = [name for name, _ in network.named_children()]
    return [
        Share(
            block=name,
            parameters=float(stored),
            operations=float(counted),
            parameter_share=tally.part(parameters=stored) / tally.score,
            operation_share=tally.part(operations=counted) / tally.score,
        )
        for name, (stored, counted) in sorted(blocks.items(), key=lambda item: order.index(item[0]))
    ]
