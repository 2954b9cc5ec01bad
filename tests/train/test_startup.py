"""The event `first_step` reports the step's end on the device, and no later step waits for the device."""

import pytest
import torch

from job import events
from job.train.startup import Startup


def test_the_first_step_is_waited_for_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: order.append(f"wait for {device}"))
    monkeypatch.setattr(events, "emit", lambda event, **fields: order.append(event))
    startup = Startup()
    for _ in range(3):
        startup.first_step(torch.device("cuda:0"))
    assert order == ["wait for cuda:0", "first_step"]
