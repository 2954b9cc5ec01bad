"""The weights that a recipe builds on: those of the network that it starts with, and of another teacher."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from torch import nn

from job.data.dataset import PreparedData
from job.errors import ConfigurationError, DataError, UsageError
from job.network import compressed, weights
from job.network.weights import NetworkInfo, PackedInfo
from job.recipe import Recipe
from job.run.outputs import read_weights
from job.settings import PretrainedSettings


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights that were read from the address that `option` named."""

    option: str
    uri: str
    network: nn.Sequential
    info: NetworkInfo
    sha256: str

    @classmethod
    def read(cls, option: str, uri: str) -> PretrainedWeights:
        """Read the weights of a finished run, or a .safetensors file.

        Raises DataError naming `option` where there are none or they cannot be used, and the store's errors.
        """
        try:
            data = read_weights(uri)
            network, info = weights.load(data)
        except DataError as error:
            raise DataError(f"{option}: {error.message}", error.fix) from error
        return cls(option, uri, network, info, hashlib.sha256(data).hexdigest())

    def check(self, data: PreparedData) -> None:
        """Raise ConfigurationError where it was not trained on `data`."""
        classes = tuple(data.dataset.classes)
        if self.info.classes != classes:
            raise ConfigurationError(
                f"{self.option}: {self.uri} has {len(self.info.classes)} classes "
                f"({', '.join(self.info.classes[:3])} ...), and the data has {len(classes)} "
                f"({', '.join(classes[:3])} ...)",
                "Name weights that were trained on the same data",
            )
        if self.info.data_sha256 != data.dataset.sha256:
            raise ConfigurationError(
                f"{self.option}: {self.uri} was trained on the data with SHA-256 {self.info.data_sha256}, "
                f"this is {data.dataset.sha256}",
                "Name weights that were trained on the same data",
            )


@dataclass(frozen=True)
class Pretrained:
    """The weights that a recipe starts with and those of its teacher; None where it has none."""

    start: PretrainedWeights | None
    teacher: PretrainedWeights | None

    @classmethod
    def read(cls, settings: PretrainedSettings, recipe: Recipe, data: PreparedData) -> Pretrained:
        """Read what is named, and check it against the recipe and the data.

        Raises UsageError for what has no effect, and what `PretrainedWeights` raises.
        """
        if settings.teacher and not (recipe.compresses and recipe.distillation):
            raise UsageError("--teacher: nothing in this recipe has a teacher", "Use --recipe compact")
        start = PretrainedWeights.read("--from", settings.start) if settings.start else None
        teacher = PretrainedWeights.read("--teacher", settings.teacher) if settings.teacher else None
        for weights_read in (start, teacher):
            if weights_read:
                weights_read.check(data)
        if start:
            _check_shape(start, recipe)
        return cls(start, teacher)

    @property
    def teacher_network(self) -> nn.Sequential | None:
        """The network that is the teacher; None where it is the run's own dense one."""
        chosen = self.teacher or self.start
        return chosen.network if chosen else None

    def with_hashes(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the SHA-256 of what it builds on."""
        return replace(
            recipe,
            from_sha256=self.start.sha256 if self.start else "",
            teacher_sha256=self.teacher.sha256 if self.teacher else "",
        )

    def initialise(self, network: nn.Module) -> None:
        """Give `network`, which can be compressed, the weights to start with; their zeros stay zeros."""
        if self.start:
            network.load_state_dict(network.state_dict() | self.start.network.state_dict())
            for _, layer in compressed.layers(network):
                layer.mask.copy_(layer.weight != 0)


def _check_shape(start: PretrainedWeights, recipe: Recipe) -> None:
    info = start.info
    if isinstance(info, PackedInfo):
        raise ConfigurationError(
            f"--from: the weights of {start.uri} are quantised already",
            "Name a run that ended dense or pruned, or one of a run's phases/",
        )
    if (info.depth, info.width) != (recipe.depth, recipe.width):
        raise ConfigurationError(
            f"--from: {start.uri} is of depth {info.depth} and width {info.width}, "
            f"the recipe of {recipe.depth} and {recipe.width}",
            f"Give --depth {info.depth} --width {info.width}",
        )
