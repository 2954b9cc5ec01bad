"""Where a run's score stands on the CIFAR-100 leaderboard of 2019, and what each block of its network adds.

The leaderboard is that of github.com/micronet-challenge/micronet-challenge.github.io at commit 02287b4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from job.run.records import Scalar
from job.run.report import Report
from job.view.plots import Axis, Tick


class LeaderboardEntry(NamedTuple):
    """A line of the leaderboard; `score` as it was listed, to four digits.

    `accuracy` of the test set, as the entry's own repository reports it, is None where this project does not
    know it. `note` says where its count differs from the rules as they are read here.
    """

    name: str
    score: float
    qualified: bool = True
    accuracy: float | None = None
    note: str = ""


SOURCE = "https://micronet-challenge.github.io/leaderboard"

REPRODUCED = "IamShinichiYamamoto"
"""The entry whose network and recipe are this project's defaults."""

ENTRIES = (
    LeaderboardEntry(
        "RIAIR", 0.0044, accuracy=0.8039, note="sums at growing integer widths; at 32 bits it is 0.0085"
    ),
    LeaderboardEntry("KAIST AI", 0.0054),
    LeaderboardEntry("KAIST AI", 0.0056),
    LeaderboardEntry("OSI AI", 0.0058),
    LeaderboardEntry("MSUNet-V3", 0.0108),
    LeaderboardEntry("MSUNet-V2", 0.0125),
    LeaderboardEntry("MSUNet-V1", 0.0171),
    LeaderboardEntry("Woody", 0.0188),
    LeaderboardEntry("Woody", 0.0193),
    LeaderboardEntry("HHI-MAL", 0.0242, accuracy=0.8013),
    LeaderboardEntry("Woody", 0.0266),
    LeaderboardEntry("MB-PM Research", 0.0384),
    LeaderboardEntry("Sloth", 0.0618),
    LeaderboardEntry("MB-PM Research", 0.0653),
    LeaderboardEntry(
        "QualcommAI-nanoWRN", 0.0721, accuracy=0.8002, note="with a bit of mask for every weight about 0.076"
    ),
    LeaderboardEntry("BrAIn", 0.0780),
    LeaderboardEntry("WaveComp", 0.0794),
    LeaderboardEntry("WaveComp", 0.0794),
    LeaderboardEntry("WaveComp", 0.0830),
    LeaderboardEntry("UCI-M", 0.1114),
    LeaderboardEntry("AutoPrune (A*STAR)", 0.1118),
    LeaderboardEntry("UCI-M", 0.1254),
    LeaderboardEntry("Frenzy", 0.1368),
    LeaderboardEntry("ProxylessNAS-TTQ", 0.1433),
    LeaderboardEntry("micro-machines", 0.1659),
    LeaderboardEntry("PunyNet", 0.1906, qualified=False),  # 53.39 % accuracy, below the 80 % required
    LeaderboardEntry("ID56", 0.2056),
    LeaderboardEntry("Soft Binary Mask", 0.3847),
    LeaderboardEntry(
        REPRODUCED, 0.4635, accuracy=0.8037, note="400 recorded epochs; 0.3309 under the official rules"
    ),
    LeaderboardEntry("Sloth", 0.7635),
)

MAX_PARAMETERS = 200e6  # a forged recipe must not make a network that fills the memory
MAX_DEPTH, MAX_WIDTH = 1000, 100

INPUT_SHAPE = [3, 32, 32]  # that a run of this program trains on; the cost of another has no bound

SMALLEST = 1e-6  # score that is drawn

QUALIFIED = tuple(entry for entry in ENTRIES if entry.qualified)


def place(score: float) -> int:
    """Return the place, from 1, of a run's headline score among the qualified entries.

    Compared to the four digits that were listed, so that a run of the reproduced entry's network shares
    its place.
    """
    return 1 + sum(entry.score < round(score, 4) for entry in QUALIFIED)


class StandingsRow(NamedTuple):
    """A line of the table; `marked` is a run's of this page."""

    name: str
    score: float
    qualified: bool
    marked: bool


@dataclass(frozen=True)
class Standings:
    """The runs among the leaderboard's entries, on a logarithmic line.

    `entries` and `runs` are at per cent of the line; `places` are those of the runs.
    """

    entries: list[Tick]
    runs: list[Tick]
    ticks: list[Tick]
    places: list[int]
    rows: list[StandingsRow]
    alt: str


def standings(runs: Sequence[tuple[str, float, bool]]) -> Standings | None:
    """Place (name, headline score, whether it reached 80 %) of each run; None without one."""
    if not runs:
        return None
    rows = [StandingsRow(name, score, passed, marked=True) for name, score, passed in runs]
    rows += [StandingsRow(entry.name, entry.score, entry.qualified, marked=False) for entry in ENTRIES]
    values = [max(row.score, SMALLEST) for row in rows]
    axis = Axis(min(values) / 1.3, max(values) * 1.3, logarithmic=True)
    decades = [10.0**power for power in range(-6, 7) if axis.low <= power <= axis.high]
    places = [place(score) for _, score, _ in runs]
    listed = ", ".join(
        f"{name} with {score:.4f} at {rank} of {len(QUALIFIED)}"
        for (name, score, _), rank in zip(runs, places, strict=True)
    )
    return Standings(
        entries=[Tick(100 * axis(entry.score), entry.name) for entry in ENTRIES],
        runs=[Tick(100 * axis(max(score, SMALLEST)), name) for name, score, _ in runs],
        ticks=[Tick(100 * axis(tick), f"{tick:g}") for tick in decades],
        places=places,
        rows=sorted(rows, key=lambda row: (round(row.score, 4), row.marked)),
        alt=f"Scores on a logarithmic line, lower is better: the leaderboard from {ENTRIES[0].score} "
        f"to {ENTRIES[-1].score}, and {listed}.",
    )


@dataclass(frozen=True)
class BlockShare:
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


def shares(report: Report, recipe: dict[str, Scalar], classes: int) -> list[BlockShare]:
    """Return the share of each top block under the `leaderboard` rules, in the network's order.

    Empty where recipe and report do not describe the same network of this program's, or one of phases.
    """
    if report.phases:
        return []
    import torch  # 1.5 s: a comparison of runs, and a run that is not finished, do without

    from job.network.wide_resnet import wide_resnet
    from job.score.rules import score

    depth, width, parameters = recipe.get("depth"), recipe.get("width"), report.model.parameters
    if not (type(depth) is int and type(width) is int and depth <= MAX_DEPTH and width <= MAX_WIDTH):
        return []
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in wide_resnet(depth, width, classes).parameters())
    except ValueError:
        return []
    if size != parameters or parameters > MAX_PARAMETERS or report.model.input_shape != INPUT_SHAPE:
        return []
    with torch.random.fork_rng(devices=[]):
        network = wide_resnet(depth, width, classes)
    tally = score(network, rule_sets=["leaderboard"]).rule_sets["leaderboard"]
    blocks: dict[str, list[Fraction]] = {}
    for row in tally.layers():
        sums = blocks.setdefault(row.layer.partition(".")[0], [Fraction(), Fraction()])
        sums[0] += Fraction(row.parameters)
        sums[1] += Fraction(row.counted)
    order = [name for name, _ in network.named_children()]
    return [
        BlockShare(
            block=name,
            parameters=float(stored),
            operations=float(counted),
            parameter_share=tally.part(parameters=stored) / tally.score,
            operation_share=tally.part(operations=counted) / tally.score,
        )
        for name, (stored, counted) in sorted(blocks.items(), key=lambda item: order.index(item[0]))
    ]
