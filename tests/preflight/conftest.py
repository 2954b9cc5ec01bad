"""Fixtures of the looks at the store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.store.careless import CarelessS3


@pytest.fixture
def careless(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CarelessS3]:
    """The environment's S3 server, whose bucket is `bucket`; it can be told to be careless."""
    server = CarelessS3()
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.uri)
    yield server
    server.stop()
