import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from job.errors import DataError
from job.run.records import Epoch, Place
from job.run.state import SLACK_BYTES, TrainingState

MOST = SLACK_BYTES

STATE = TrainingState(
    epoch=3,
    step=7,
    steps_per_epoch=9,
    scaler={},
    network={"weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)},
    optimizer=[{"step": torch.tensor(9.0), "exp_avg": torch.randn(4), "exp_avg_sq": torch.rand(4)}],
    loss_total=torch.tensor(1.5),
    epoch_seconds=2.5,
    history=[
        Epoch(epoch=1, train_loss=1.0, lr=0.1, momentum=0.9, images_per_second=9.0, attempt=1, accuracy=0.25)
    ],
)


def test_a_state_goes_round() -> None:
    decoded = TrainingState.decode(STATE.encode(), MOST)
    assert (decoded.epoch, decoded.step, decoded.epoch_seconds, decoded.history) == (3, 7, 2.5, STATE.history)
    assert torch.equal(decoded.network["weight"], STATE.network["weight"])
    assert all(torch.equal(decoded.optimizer[0][name], value) for name, value in STATE.optimizer[0].items())


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a checkpoint",
        STATE.encode()[:-100],
        saved({"format": "micronet.state/9"}),
        saved({"format": "micronet.state/1", "epoch": 1}),
        saved([1, 2]),
    ],
    ids=["empty", "text", "short", "newer", "part", "list"],
)
def test_what_is_no_state_is_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        TrainingState.decode(data, MOST)


def altered(**fields: object) -> bytes:
    plain = [record.to_json() for record in STATE.history]
    return saved({"format": "micronet.state/1", **dict(STATE), "history": plain, **fields})


def with_moments(**fields: torch.Tensor) -> bytes:
    return altered(optimizer=[{**STATE.optimizer[0], **fields}])


EPOCH = STATE.history[0].to_json()


@pytest.mark.parametrize(
    "data",
    [
        altered(epoch="3"),
        altered(epoch=-1),
        altered(step=10),
        altered(epoch_seconds=float("nan")),
        altered(history=[EPOCH | {"train_loss": float("nan")}]),
        altered(history=[EPOCH | {"epoch": 1.0}]),
        altered(history=[EPOCH | {"epoch": 2}]),
        altered(history=[EPOCH | {"images_per_second": 0.0}]),
        altered(history={}),
        altered(scaler={"scale": 1.0}),
        altered(network={"weight": torch.tensor([float("inf")])}),
        altered(network={"weight": torch.zeros(3, dtype=torch.float64)}),
        altered(network={"weight": torch.zeros(1).expand(2**50)}),
        altered(network={"weight": torch.zeros(3, device="meta")}),
        altered(network={"weight": [1.0]}),
        altered(loss_total=torch.tensor(float("nan"))),
        altered(loss_total=torch.zeros(2)),
        with_moments(exp_avg=torch.tensor([float("nan")])),
        with_moments(exp_avg=torch.zeros(3).to_sparse()),
    ],
)
def test_a_state_of_wrong_types_or_values_is_refused(data: bytes) -> None:
    assert TrainingState.decode(altered(), MOST).epoch == 3
    with pytest.raises(DataError):
        TrainingState.decode(data, MOST)


def test_a_state_is_no_larger_than_the_networks() -> None:
    with pytest.raises(DataError, match="more than the 100 of the network"):
        TrainingState.decode(STATE.encode(), 100)


def test_a_state_that_unpacks_to_more_than_its_size_is_not_unpacked() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**25))
    tracemalloc.start()
    with pytest.raises(DataError, match="unpacks to"):
        TrainingState.decode(buffer.getvalue(), MOST)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def pickled(opcodes: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + opcodes + b".")
        archive.writestr("archive/version", b"3")
    return buffer.getvalue()


def twice(depth: int) -> bytes:
    """Tuples of the one before twice; the hash of the last takes 2^depth steps."""
    nested = b")q\x00" + b"".join(
        b"h" + bytes([level]) + b"\x86q" + bytes([level + 1]) for level in range(depth)
    )
    return b"}" + nested + b"K\x01s"


@pytest.mark.parametrize(
    "opcodes",
    [
        twice(60),
        twice(60).replace(b"q", b"q\xfeq"),  # remembered twice: what is read is the second
        b"}" + b")" + b"\x85" * 2_000_000 + b"K\x01s",
        b"(" + b"]" * 1_100_000 + b"l",
    ],
    ids=["shared", "remembered twice", "deep", "many"],
)
def test_a_state_cannot_keep_its_reader_busy(opcodes: bytes) -> None:
    with pytest.raises(DataError, match="nested beyond bounds"):
        TrainingState.decode(pickled(opcodes), 2**24)


def test_moments_of_other_parameters_are_refused() -> None:
    weight, bias = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(2))
    STATE.check_optimizer(torch.optim.AdamW([weight]))
    for optimizer in (torch.optim.AdamW([weight, bias]), torch.optim.AdamW([bias])):
        with pytest.raises(DataError, match="moments"):
            STATE.check_optimizer(optimizer)
    short = STATE.model_copy(update={"optimizer": [{"step": torch.tensor(1.0)}]})
    with pytest.raises(DataError, match="other shapes"):
        short.check_optimizer(torch.optim.AdamW([weight]))


class Hostile:
    """Asks whoever unpickles it to make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


def test_a_state_cannot_run_code(tmp_path: Path) -> None:
    for data in (saved({"format": Hostile(tmp_path / "x")}), pickle.dumps(Hostile(tmp_path / "x"))):
        with pytest.raises(DataError):
            TrainingState.decode(data, MOST)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("continues_with", "place"),
    [
        ((0, 0), (1, 0)),
        ((0, 9), (1, 9)),
        ((1, 0), (1, 20)),
        ((1, 3), (2, 3)),
        ((5, 20), (6, 20)),
        ((6, 0), (6, 20)),
    ],
)
def test_no_run_of_six_epochs_is_in_its_seventh(
    continues_with: tuple[int, int], place: tuple[int, int]
) -> None:
    assert Place.of(*continues_with, steps_per_epoch=20) == place
