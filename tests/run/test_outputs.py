from pathlib import Path

import pytest

from job.errors import DataError
from job.run import outputs
from job.run.outputs import Copy, read_weights
from job.store import open_store


def test_the_copy_of_the_history_is_left_alone_by_an_attempt_that_was_paused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    old = Copy(store, "history.jsonl")
    old.write(b"epoch 1")
    old.write(b"epoch 1, 2")
    assert store.get("history.jsonl").data == b"epoch 1, 2"
    new = Copy(store, "history.jsonl")
    new.write(b"epoch 1, 2, 3")
    old.write(b"epoch 1, 2, and more")  # it was about to when it was paused
    assert store.get("history.jsonl").data == b"epoch 1, 2, 3"
    new.write(b"epoch 1, 2, 3, 4")
    assert store.get("history.jsonl").data == b"epoch 1, 2, 3, 4"


def test_the_owner_writes_on_after_a_late_write_of_the_attempt_before(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    old, new = Copy(store, "history.jsonl"), Copy(store, "history.jsonl")
    old.write(b"epoch 1")
    new.write(b"epoch 1, 2")
    new.write(b"epoch 1, 2, 3")
    assert store.get("history.jsonl").data == b"epoch 1, 2, 3"


def test_more_weights_than_allowed_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "large.safetensors"
    monkeypatch.setattr(outputs, "MAX_WEIGHTS_BYTES", 1000)
    file.write_bytes(bytes(1000))
    assert len(read_weights(str(file))) == 1000
    file.write_bytes(bytes(1001))
    with pytest.raises(DataError, match="larger than the 1000 bytes allowed"):
        read_weights(str(file))
