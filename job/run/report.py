"""The report of a finished run: one record from the training that writes report.json to whatever shows it.

Fields are written in the order in which they are declared here. One with a default is absent where it does
not apply or an older version wrote the report; `None` without a default is a value that is not known.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, WithJsonSchema

from job.phases import DENSE, PRUNE, QUANTISE, STATISTICS
from job.recipe import PRECISIONS
from job.run import documents, layout
from job.run.documents import Record, mistyped
from job.run.records import Sha256, Share
from job.store.base import AbsentError, Store

Schema = Literal["micronet.score-report/1"]
SCHEMA: Schema = "micronet.score-report/1"
MAX_BYTES = 2**25
THRESHOLD = 0.8  # the challenge's: at least 8,000 of the 10,000 test images, without rounding

Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
Counted = Annotated[Whole | Amount, WithJsonSchema({"type": "number", "minimum": 0})]
"""A count in units of 32 bits: an int where it is whole."""

Bits = Annotated[int, Field(ge=1, le=32)]
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""Text of any kind, since older versions did not check it."""


def _one_of(*names: str) -> str:
    return f"^({'|'.join(names)})$"


class Section(Record):
    """A part of the report; a field that it does not have is refused."""

    model_config = ConfigDict(extra="forbid")


class RunName(Section):
    """The run's identity, and where it was stored when it was finished."""

    id: str
    uri: str


class Model(Section):
    """The network; `input_shape` is (channels, height, width)."""

    name: str
    widths: Annotated[list[Positive], Field(min_length=1)]
    parameters: Positive
    input_shape: Annotated[list[Positive], Field(min_length=3, max_length=3)]


class BestEpoch(Section):
    """The best epoch, from 1: its accuracy on the test set, and which images it was selected on."""

    value: Share
    epoch: Positive
    selected_on: Literal["test", "holdout"]


class Accuracy(Section):
    """The accuracy of the final weights on the test set, and whether it reaches the challenge's threshold."""

    final: Share
    best: BestEpoch
    correct: Whole
    total: Positive
    threshold: Annotated[float, Field(ge=THRESHOLD, le=THRESHOLD)]
    passed: bool

    @classmethod
    def of(cls, correct: int, total: int, best: BestEpoch) -> Self:
        """Return the section; `passed` compares whole numbers, so that 7,999 of 10,000 fails."""
        return cls(
            final=correct / total,
            best=best,
            correct=correct,
            total=total,
            threshold=THRESHOLD,
            passed=10 * correct >= 8 * total,
        )


class OperationCount(Section):
    """The operations of one kind."""

    multiplications: Whole
    additions: Whole
    counted: Counted


class RuleSet(Record):
    """The score under one rule set, of which other programs may state more than is read here.

    `freebie`: whether parameters and multiplications count as 16-bit; under the `official` rules only.
    """

    parameters: Counted
    operations: Annotated[dict[str, OperationCount], Field(min_length=1)]  # by their kind
    total: Counted
    parameter_term: Amount
    operation_term: Amount
    score: Amount
    freebie: bool | None = None


class Score(Section):
    """The score under each rule set."""

    writeup: RuleSet
    leaderboard: RuleSet
    official: RuleSet

    def rule_sets(self) -> dict[str, RuleSet]:
        """Return them by name."""
        return dict(self)


class PhaseScore(Section):
    """The score of the network after a phase."""

    writeup: Amount
    leaderboard: Amount
    official: Amount


class PhaseLayer(Section):
    """One layer's weights after a phase: their number, the share of zeros, the bits."""

    name: str
    size: Positive
    zeros: Share
    weight_bits: Bits
    activation_bits: Bits


class StoredFile(Section):
    """Where a file of the run is, and its SHA-256."""

    uri: str
    sha256: Sha256


class PhaseResult(Section):
    """The network after a phase; zeros and bits are of the layers between the first and the last."""

    name: Annotated[str, Field(pattern=_one_of(DENSE, PRUNE, QUANTISE, STATISTICS))]
    epochs: Positive
    accuracy: Share
    correct: Whole
    total: Positive
    score: PhaseScore
    zeros: Share
    weight_bits: Bits
    activation_bits: Bits
    layers: Annotated[list[PhaseLayer], Field(min_length=1)]
    weights: StoredFile


class Training(Section):
    """How the network was trained; the speed and `trained_seconds` are of the training alone."""

    epochs: Positive
    cycles: str
    batch_size: Positive
    images_per_second: Amount
    trained_seconds: Amount | None = None
    wall_seconds: Amount | None = None  # since the first attempt's start
    device: str
    precision: Annotated[str, Field(pattern=_one_of(*(name for name in PRECISIONS if name != "auto")))]
    deterministic: bool
    history: str  # its address


class Data(Section):
    """The data, and its numbers of images."""

    source: str
    sha256: Sha256
    train: Positive
    test: Positive


class AttemptEntry(Section):
    """One attempt at the run, and how it ended."""

    generation: Positive
    started: Timestamp | None
    ended: Timestamp | None
    reason: str
    host: str | None
    device: str | None
    processes: Positive | None = None  # that shared the work, of a recipe with several shards


class Drift(Section):
    """A field of the machine or the recipe that differs from the attempt before."""

    generation: Positive
    field: str
    before: str | None
    now: str | None


class Lineage(Section):
    """The attempts, what changed between them, and what they cost."""

    attempts: Annotated[list[AttemptEntry], Field(min_length=1)]
    drift: list[Drift]
    checkpoints: Whole  # by all attempts
    lost_seconds: Amount  # of training, by attempts that vanished


class Environment(Section):
    """The software and the driver that the last attempt ran with."""

    micronet: str
    git: str | None
    code: str | None = None
    image: str | None
    python: str
    torch: str
    fastai: str
    cuda: str | None
    driver: str | None

    @property
    def code_name(self) -> str:
        """The revision and the code's hash for people."""
        return f"{self.git or 'unknown revision'}, code {self.code or 'unknown'}"


class Report(Section):
    """The report of a finished run."""

    version: Schema = Field(alias="schema")
    run: RunName
    model: Model
    accuracy: Accuracy
    score: Score
    phases: Annotated[list[PhaseResult], Field(min_length=1)] = Field(default_factory=list)
    training: Training
    data: Data
    weights: StoredFile
    predictions: StoredFile
    lineage: Lineage
    environment: Environment

    @property
    def headline(self) -> tuple[str, RuleSet]:
        """The rule set, with its name, whose score is shown first.

        `official` after phases, since it alone counts zeros and bits, else `leaderboard`.
        """
        return ("official", self.score.official) if self.phases else ("leaderboard", self.score.leaderboard)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, without what is absent."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    def encode(self) -> bytes:
        """Return the content of report.json."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes, name: str) -> Self:
        """Return the report in `data`; DataError naming `name` where it holds something else."""
        content = documents.json_object(data, name, MAX_BYTES)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise mistyped(name, error, "Find out what has changed the file, or move it away") from error

    @classmethod
    def read(cls, store: Store) -> Self | None:
        """Return the report of the run in `store`, None where it has none; raises what `decode` does."""
        try:
            data = documents.fetch(store, layout.REPORT, MAX_BYTES).data
        except AbsentError:
            return None
        return cls.decode(data, f"{store.uri}/{layout.REPORT}")


def schema() -> str:
    """Return the report's JSON schema, the content of score-report.schema.json."""
    content = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema()}
    return json.dumps(content, indent=2) + "\n"
