"""Every document that a run leaves, with one field dropped, retyped or resized and sealed anew.

Whatever somebody writes into a bucket, train, status, report and evaluate end with an exit code of the table
(never 1, a bug) and one line, and no control character reaches the terminal.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from job import cli, events
from job.machine.preemption import Preemption
from job.network import weights
from tests.archives import write_archive
from tests.run.checkpoint_runs import quick_folder, seal
from tests.view.runs import beat

SEED = int(os.environ.get("MICRONET_TEST_SEED") or int.from_bytes(os.urandom(4), "big"))
CODES = {0, 65, 74, 76, 78}
RECIPE = ("--depth", "10", "--width", "1", "--cycles", "1@5e-3", "--batch-size", "16", "--precision", "fp32")

DROP = "drop"
ESCAPES = "\x1b]0;title\x07\x1b[2J\u202egnp\u0085"
HOSTILE = [
    None, True, -1, 0, 1, 2, 0.5, -0.0, 1e-300, 1e300, 10**12 + 1, 2**64, 10**40, float("nan"), float("inf"),
    "", "x", ESCAPES, "\ud800", "x" * 100_000, "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59",
    "2026-01-01T00:00:00", "../../x", [], [[]], {}, {"x": 1}, [None] * 1000, ["x"] * 10, {ESCAPES: ESCAPES},
    json.loads("[" * 900 + "]" * 900),
]  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A folder with a run, and the arguments with which its recipe is trained."""

    run: Path
    where: tuple[str, ...]


def call(*arguments: str) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and what it printed."""
    printed, before = io.StringIO(), sys.argv
    sys.argv = ["micronet", *arguments]
    # A process watches for signals once; a thousand times over, that takes all descriptors.
    unwatched = mock.patch.object(Preemption, "installed", return_value=nullcontext())
    try:
        with redirect_stdout(printed), redirect_stderr(printed), unwatched:
            code = cli._run()
    finally:
        sys.argv = before
        events.configure()
    return code, printed.getvalue()


def check(*arguments: str) -> int:
    """Assert that the command ends in order; return its exit code."""
    code, printed = call(*arguments)
    assert code in CODES, (arguments, code, printed[-3000:])
    assert "Traceback" not in printed
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", printed), printed
    stopped = [line for line in printed.splitlines() if line.startswith("micronet: ")]
    assert len(stopped) == (1 if code else 0), printed
    assert all(len(line) < 2000 for line in stopped), printed
    return code


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


@pytest.fixture(scope="module")
def finished(folder: Path) -> Example:
    archive = write_archive(folder / "tiny.tar.gz", train=40, test=20, classes=5)
    data = ("--data", str(archive), "--cache", str(folder / "cache"))
    run = folder / "finished"
    assert call("train", "--run", str(run), *data, *RECIPE, "--device", "cpu")[0] == 0
    return Example(run, data)


@pytest.fixture(scope="module")
def unfinished(folder: Path, finished: Example) -> Example:
    """The same run after its last step and before its outputs, with a heartbeat."""
    run = folder / "unfinished"
    shutil.copytree(finished.run, run)
    for name in ("report.json", "report.html", "weights.safetensors", "predictions.npz", "samples.png"):
        (run / name).unlink()
    (run / "manifests/1-2.json").unlink()
    edit(run / "HEAD.json", lambda content: content.update(manifest="manifests/1-1.json"))
    edit(run / "claims/1", lambda content: content.update(end=None))
    (run / "heartbeats").mkdir()
    (run / "heartbeats/1.json").write_bytes(beat().encode())
    return Example(run, finished.where)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_bytes())
    change(content)
    path.write_bytes(seal(content) if "sha256" in content else json.dumps(content).encode())


@contextmanager
def copied(example: Example) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=example.run.parent) as name:
        yield Path(shutil.copytree(example.run, Path(name) / "run"))


def mutate(content: Any, draw: Callable[[st.SearchStrategy[Any]], Any], values: list[Any]) -> Any:
    """Return `content` with something in it replaced, dropped, doubled or cut."""
    children: list[Any] = list(content) if isinstance(content, dict) else []
    if isinstance(content, list):
        children = list(range(len(content)))
    if not children or draw(st.integers(0, 5)) == 0:
        choices: list[Any] = [*values, DROP]
        if isinstance(content, str | list):
            choices += [content * 2, content[:-1]]
        if isinstance(content, int) and not isinstance(content, bool):
            choices += [content + 1, content - 1, float(content), str(content)]
        return draw(st.sampled_from(choices))
    place = draw(st.sampled_from(children))
    changed = copy.copy(content)
    value = mutate(content[place], draw, values)
    if isinstance(value, str) and value == DROP:
        del changed[place]
    else:
        changed[place] = value
    return changed


def mutate_json(path: Path, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    content = mutate(json.loads(path.read_bytes()), draw, HOSTILE)
    sealed = isinstance(content, dict) and "schema" in content and path.name != "report.json"
    path.write_bytes(seal(content) if sealed else json.dumps(content).encode())


def mutate_lines(path: Path, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    lines = mutate([json.loads(line) for line in path.read_bytes().splitlines()], draw, HOSTILE)
    path.write_bytes(
        b"".join(
            json.dumps(line).encode() + b"\n" for line in (lines if isinstance(lines, list) else [lines])
        )
    )


def tensors() -> list[Any]:
    return [
        torch.zeros(0), torch.zeros(3), torch.tensor(1.0), torch.tensor(float("nan")),
        torch.zeros(2, 2).half(), torch.zeros(16, 3, 3, 3, dtype=torch.float64),
        torch.zeros(1).expand(2**40), torch.full((16,), float("inf")), torch.zeros(16).to_sparse(),
        torch.nn.Parameter(torch.zeros(16)), torch.zeros(5, device="meta"),
        torch.zeros(16, dtype=torch.int64),
    ]  # fmt: skip


def mutate_state(run: Path, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    path = run / "manifests/1-1.json"
    stored = json.loads(path.read_bytes())["objects"]["state.pt"]
    content = torch.load(run / stored["key"], weights_only=True)
    values = [
        *tensors(),
        *(value for value in HOSTILE if not isinstance(value, str) or "\ud800" not in value),
    ]
    buffer = io.BytesIO()
    torch.save(mutate(content, draw, values), buffer)
    replace_state(run, buffer.getvalue())


def replace_state(run: Path, data: bytes) -> None:
    """Put another state under the newest manifest, with the right hash and size."""

    def change(content: dict[str, Any]) -> None:
        sha256 = hashlib.sha256(data).hexdigest()
        key = f"objects/{content['generation']}-{content['owner']}/{sha256}"
        (run / key).write_bytes(data)
        content["objects"]["state.pt"] = {"key": key, "sha256": sha256, "bytes": len(data)}

    edit(run / "manifests/1-1.json", change)


def mutate_weights(path: Path, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    data = path.read_bytes()
    found, (_, info) = load_tensors(data), weights.load(data)
    header = mutate(json.loads(json.dumps(info.__dict__)), draw, HOSTILE)
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(found)))
        found[name] = draw(
            st.sampled_from(
                [
                    found[name].half(),
                    found[name].double(),
                    found[name] * float("nan"),
                    found[name].flatten()[:0],
                ]
            )
        )
    path.write_bytes(save_tensors(found, metadata={weights.FORMAT: json.dumps(header)}))


def mutate_predictions(path: Path, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    with np.load(path) as arrays:
        content = {name: arrays[name] for name in arrays}
    name = draw(st.sampled_from(sorted(content)))
    array = content[name]
    others = [
        array[:0],
        array[:-1],
        array.astype(np.float64) if array.dtype.kind == "i" else array[None],
        array * 2**40 if array.dtype.kind == "i" else array,
        np.array(["\x1b[2J"] * 5),
        np.array(3),
        -np.ones(20, np.int64),
    ]
    content[name] = draw(st.sampled_from(others))
    np.savez_compressed(path, **content)


JSON = ("recipe.json", "HEAD.json", "claims/1", "manifests/1-1.json", "history.jsonl")
LEFT = {
    "unfinished": (*JSON, "heartbeats/1.json", "state"),
    "finished": (*JSON, "manifests/1-2.json", "report.json", "weights.safetensors", "predictions.npz"),
}


def damage(run: Path, document: str, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    path = run / document
    if document == "state":
        mutate_state(run, draw)
    elif document == "history.jsonl":
        mutate_lines(path, draw)
    elif document == "weights.safetensors":
        mutate_weights(path, draw)
    elif document == "predictions.npz":
        mutate_predictions(path, draw)
    else:
        mutate_json(path, draw)


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """Give a test that many examples of this session's seed; one that fails is not made smaller (minutes)."""
    print("MICRONET_TEST_SEED", SEED)
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
    )
    return lambda test: hypothesis.seed(SEED)(settings(test))


def look(example: Example, kind: str, data: st.DataObject) -> None:
    with copied(example) as run:
        damage(run, data.draw(st.sampled_from(LEFT[kind])), data.draw)
        check("status", str(run))
        check("report", str(run), "--output", str(run / "page.html"))
        if kind == "finished":
            check("evaluate", str(run), *example.where, "--device", "cpu")


def train(example: Example, kind: str, data: st.DataObject) -> None:
    with copied(example) as run:
        damage(run, data.draw(st.sampled_from(LEFT[kind])), data.draw)
        check("train", "--run", str(run), *example.where, *RECIPE, "--device", "cpu")


@pytest.mark.parametrize("kind", LEFT)
@given(data=st.data())
@fuzzed(40)
def test_a_damaged_document_is_shown_or_refused(
    request: pytest.FixtureRequest, kind: str, data: st.DataObject
) -> None:
    look(request.getfixturevalue(kind), kind, data)


@pytest.mark.parametrize("kind", LEFT)
@given(data=st.data())
@fuzzed(12)
def test_a_damaged_document_is_trained_from_or_refused(
    request: pytest.FixtureRequest, kind: str, data: st.DataObject
) -> None:
    train(request.getfixturevalue(kind), kind, data)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", LEFT)
@given(data=st.data())
@fuzzed(1000)
def test_a_thousand_damaged_documents(request: pytest.FixtureRequest, kind: str, data: st.DataObject) -> None:
    look(request.getfixturevalue(kind), kind, data)
    train(request.getfixturevalue(kind), kind, data)
