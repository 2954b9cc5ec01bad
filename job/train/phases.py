"""The networks that a run's phases end with: stored with the run, used as teacher, and reported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from job import events
from job.errors import ConfigurationError, DataError
from job.network import compressed, weights
from job.network.weights import NetworkInfo
from job.phases import Phase
from job.run import documents, layout
from job.run.outputs import MAX_WEIGHTS_BYTES, History, Run
from job.run.report import PhaseLayer, PhaseResult, PhaseScore, StoredFile
from job.score.rules import score
from job.store.base import AbsentError, ConflictError
from job.store.retry import patiently
from job.train.compression import effective_weights
from job.train.evaluate import Evaluator, Predictions

UNQUANTISED = 32  # bits


class PhaseWeights:
    """The weights after each phase but the last, in the run's store; the history has their SHA-256.

    File names contain the hash, so a fenced attempt cannot overwrite another file.
    """

    def __init__(self, run: Run, info: NetworkInfo, history: History, budget_seconds: float) -> None:
        self.run, self.info, self.history, self.budget_seconds = run, info, history, budget_seconds

    def keep(self, epoch: int, network: nn.Module) -> dict[str, str]:
        """Store the weights if a phase but the last ends with `epoch`, from 1; return what to record."""
        phase = next((phase for phase in self.run.recipe.phases[:-1] if phase.end == epoch), None)
        if phase is None:
            return {}
        data = weights.save(network, self.info)
        sha256 = hashlib.sha256(data).hexdigest()

        def put() -> None:
            try:
                self.run.store.put_if_absent(layout.phase_weights(phase.name, sha256), data)
            except ConflictError:
                return  # an attempt before this one came as far

        patiently(put, self.budget_seconds)
        return {"weights": sha256}

    def name(self, phase: Phase) -> str | None:
        """Return where the weights after `phase` are; None where the recipe was another then."""
        record = self.history.records[phase.end - 1]
        return layout.phase_weights(phase.name, record.weights) if record.weights else None

    def read(self, phase: Phase) -> bytes:
        """Return the file of the weights after `phase`.

        Raises DataError where its file is missing or changed, ConfigurationError where there never was one.
        """
        name = self.name(phase)
        if name is None:
            raise ConfigurationError(
                f"the run has not kept the weights after its phase {phase.name}: its recipe was another then",
                "Name a teacher with --teacher, or start in a new --run",
            )
        try:
            data = documents.fetch(self.run.store, name, MAX_WEIGHTS_BYTES).data
        except AbsentError as error:
            raise DataError(f"{self.run.uri(name)} is missing", "Put it back from a copy") from error
        if hashlib.sha256(data).hexdigest() != self.history.records[phase.end - 1].weights:
            raise DataError(f"{self.run.uri(name)} has been changed", "Put it back from a copy")
        return data


@dataclass(frozen=True)
class Final:
    """A run's last network: itself, its file, and its answers in fp32."""

    network: nn.Module
    data: bytes
    predictions: Predictions

    @classmethod
    def of(cls, network: nn.Module, info: NetworkInfo, evaluator: Evaluator) -> Final:
        """Return the final network with its file and test predictions.

        A compressed network is evaluated as loaded from that file.
        """
        data = weights.save(network, info)
        loaded = weights.load(data)[0] if any(compressed.layers(network)) else network
        return cls(loaded, data, evaluator.predictions(loaded))


def phase_results(
    stored: PhaseWeights, final: Final, evaluator: Evaluator, shape: tuple[int, ...]
) -> list[PhaseResult]:
    """Return the report's section `phases`; empty for a recipe of one phase.

    A phase whose weights were not kept is logged and left out.
    """
    return list(_phase_results(stored, final, evaluator, shape)) if stored.run.recipe.compresses else []


def _phase_results(
    stored: PhaseWeights, final: Final, evaluator: Evaluator, shape: tuple[int, ...]
) -> Iterator[PhaseResult]:
    *earlier, last = stored.run.recipe.phases
    for phase in earlier:
        name, sha256 = stored.name(phase), stored.history.records[phase.end - 1].weights
        if name is None or sha256 is None:
            events.warn(
                "figure_left_out", figure=f"phases.{phase.name}", reason="the recipe was another then"
            )
            continue
        network = weights.load(stored.read(phase))[0]
        file = StoredFile(uri=stored.run.uri(name), sha256=sha256)
        yield _result(phase, network, evaluator.predictions(network), shape, file)
    file = stored.run.describe(layout.WEIGHTS, final.data)
    yield _result(last, final.network, final.predictions, shape, file)


def _result(
    phase: Phase, network: nn.Module, predictions: Predictions, shape: tuple[int, ...], file: StoredFile
) -> PhaseResult:
    layers = [
        PhaseLayer(
            name=name,
            size=weight.numel(),
            zeros=1 - int(weight.count_nonzero()) / weight.numel(),
            weight_bits=bits.weight if bits else UNQUANTISED,
            activation_bits=bits.activation if bits else UNQUANTISED,
        )
        for name, bits, weight in effective_weights(network)
    ]
    pruned = [layer for layer in layers if compressed.is_prunable(layer.name)]
    rule_sets = score(network, shape).rule_sets
    return PhaseResult(
        name=phase.name,
        epochs=phase.epochs,
        accuracy=predictions.accuracy,
        correct=predictions.correct,
        total=len(predictions.labels),
        score=PhaseScore(**{name: tally.score for name, tally in rule_sets.items()}),
        zeros=sum(layer.zeros * layer.size for layer in pruned) / sum(layer.size for layer in pruned),
        weight_bits=pruned[0].weight_bits,
        activation_bits=pruned[0].activation_bits,
        layers=layers,
        weights=file,
    )
