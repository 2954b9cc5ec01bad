import io
import pickle
from pathlib import Path

import pytest
import torch

from job.errors import DataError
from job.run.records import Epoch
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
