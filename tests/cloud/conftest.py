"""Fixtures of the cloud tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cloud.servers import Moto, Recorder


@pytest.fixture(scope="session")
def moto() -> Iterator[Moto]:
    server = Moto()
    yield server
    server.stop()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    server = Recorder()
    server.start()
    yield server
    server.stop()
