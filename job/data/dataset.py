"""Fetch, verify, unpack and load a data set: from its sources to arrays in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from job.data import demo
from job.data.archive import CIFAR100_SOURCES, Archive, fetch, parse_source
from job.data.cifar import Channels, Dataset, load, statistics
from job.data.extract import unpack, unpacked
from job.settings import DEMO_DATA
from job.store.files import explain


@dataclass(frozen=True)
class PreparedData:
    """A data set, the source and the folder it is from, and its channels' mean and deviation in [0, 1]."""

    dataset: Dataset
    source: str
    folder: Path
    mean: Channels
    std: Channels


def prepare(sources: Sequence[str], cache: Path, store_cache: str | None = None) -> PreparedData:
    """Fetch, verify, unpack and load the first of `sources` that works; without any CIFAR-100.

    DEMO_DATA stands for the generated set. The archive is read from and put into the store `store_cache`
    as in `archive.fetch`. Raises JobError.
    """
    if tuple(sources) == (DEMO_DATA,):
        archive = _generate(cache)
    else:
        archive = fetch([parse_source(text) for text in sources] or CIFAR100_SOURCES, cache, store_cache)
    return _load(unpack(archive, cache), archive.sha256, archive.uri)


def recall(sha256: str, source: str, cache: Path, store_cache: str | None = None) -> PreparedData:
    """Return the data set of that archive from `cache`, else from the source that it once came from."""
    folder = unpacked(sha256, cache)
    if folder is not None:
        return _load(folder, sha256, source)
    return prepare((source if source == DEMO_DATA else f"{source}#sha256={sha256}",), cache, store_cache)


def _load(folder: Path, sha256: str, source: str) -> PreparedData:
    dataset = load(folder, sha256)
    return PreparedData(dataset, source, folder, *statistics(dataset))


def _generate(cache: Path) -> Archive:
    """Write the demo set, each time again (1 s), so that the cache never holds an older version of it."""
    path = cache / "demo.tar.gz"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return Archive(path, demo.write(path), DEMO_DATA)
    except OSError as error:
        raise explain(error, path) from error
