"""`micronet export`: a run's network as ONNX, with the predictions of PyTorch for every test image."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from job.commands import cli
from job.data import demo, pack
from job.data.dataset import prepare
from job.errors import ConfigurationError
from job.network.onnx_model import FromPixels
from job.train.export import TIE, Tie, compare, perturbed
from tests.archives import write_archive
from tests.forked import micronet
from tests.network.networks import INFO, network

TINY = ["--device", "cpu", "--depth", "10", "--width", "1", "--cycles", "1@5e-3", "--batch-size", "50"]
IMAGES = 600


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and its data, as the demo's."""
    place = tmp_path_factory.mktemp("place")
    generator = np.random.default_rng(0)
    train, test = demo.generate(5, generator), demo.generate(6, generator)
    classes = [str(number) for number in range(100)]
    pack.write_archive(place / "data.tar.gz", train, test, classes, classes)
    where = ("--data", place / "data.tar.gz", "--run", place / "run", "--cache", place / "cache")
    done = micronet("train", *TINY, *where)
    assert done.returncode == 0, done.stderr
    return place


def test_the_file_predicts_what_the_run_predicted_for_every_test_image(place: Path) -> None:
    done = micronet("export", place / "run", "--cache", place / "cache")
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["onnx"] == str(place / "run" / "model.onnx")
    assert lines["checked"].startswith(f"{IMAGES} test images with onnxruntime: the same predictions")
    assert lines["opset"] == "21"

    dataset = prepare((str(place / "data.tar.gz"),), place / "cache").dataset
    session = onnxruntime.InferenceSession(Path(lines["onnx"]), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"pixels": dataset.test.images})[0]
    with np.load(place / "run" / "predictions.npz") as stored:
        assert (logits.argmax(1) == stored["prediction"]).all()
        assert len(set(stored["prediction"])) > 5


def test_the_weights_can_be_named_and_the_file_too(place: Path, tmp_path: Path) -> None:
    weights, output = place / "run" / "weights.safetensors", tmp_path / "new" / "x.onnx"
    done = micronet("export", weights, "--output", output, "--json", "--cache", place / "cache")
    about = json.loads(done.stdout)
    assert about["file"] == str(output)
    assert about["checked"]["images"] == IMAGES
    assert about["checked"]["ties"] == []
    assert 0 < about["checked"]["largest_difference"] < 1e-4
    assert output.stat().st_size > 100_000


def test_the_data_of_another_run_is_refused(place: Path, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "tiny.tar.gz", train=40, test=20, classes=5)
    done = micronet(
        "export", place / "run", "--data", archive, "--output", tmp_path / "x", "--cache", tmp_path
    )
    assert done.returncode == 78
    assert "trained on the data with SHA-256" in done.stderr
    assert not (tmp_path / "x").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    done = micronet("export", tmp_path, "--cache", tmp_path)
    assert done.returncode == 65
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith("Name a finished run or a .safetensors file (exit code 65)")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_the_command(
    place: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = ["export", str(place / "run"), "--output", str(tmp_path / "x"), "--cache", str(place / "cache")]
    with pytest.raises(ConfigurationError, match=r"\./setup\.sh install onnx") as refused:
        cli.main(words, standalone_mode=False)
    assert package in str(refused.value)
    assert not (tmp_path / "x").exists()


def test_without_onnxruntime_it_is_written_and_said_to_be_unchecked(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then no data is needed either: the cache is empty."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    words = [
        "export",
        str(place / "run"),
        "--output",
        str(tmp_path / "x"),
        "--cache",
        str(tmp_path / "empty"),
    ]
    cli.main(words, standalone_mode=False)
    assert "checked   no: onnxruntime is not installed (./setup.sh install onnx)" in capsys.readouterr().out
    assert (tmp_path / "x").stat().st_size > 100_000
    assert not (tmp_path / "empty").exists()


def test_a_prediction_may_differ_where_two_logits_are_a_tie() -> None:
    ours = torch.tensor([[1.0, 1.0 - TIE / 2, 0.0], [3.0, 1.0, 2.0]])
    theirs = torch.tensor([[1.0 - TIE / 2, 1.0, 0.0], [3.0, 1.0, 2.5]])
    found = compare(ours, theirs, sensitivity=lambda: pytest.fail("not needed for ties"))
    assert (found.images, found.largest_difference) == (2, 0.5)
    (tie,) = found.ties
    assert tie == Tie(image=0, pytorch=0, onnx=1, gap=tie.gap)
    assert tie.gap == pytest.approx(TIE / 2, rel=0.01)


@pytest.mark.parametrize("logit", [1.0 + 2 * TIE, float("nan")])
def test_a_prediction_that_differs_otherwise_is_an_error(logit: float) -> None:
    ours = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, logit]])
    theirs = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(ConfigurationError, match=r"1 of 3 test images \(image 2: 0, not 1"):
        compare(ours, theirs, sensitivity=lambda: 0.9 * TIE)


def test_a_prediction_may_differ_by_what_last_bits_move_in_pytorch_itself() -> None:
    ours, theirs = torch.tensor([[1.0, 1.01]]), torch.tensor([[1.01, 1.0]])
    (tie,) = compare(ours, theirs, sensitivity=lambda: 0.006).ties
    assert tie.gap == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(ConfigurationError):
        compare(ours, theirs, sensitivity=lambda: 0.004)


def test_last_bits_move_the_logits_of_a_quantised_network_by_a_level() -> None:
    pixels = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    moved = []
    for bits in (None, (1, 8)):
        networks = network(bits), perturbed(network(bits))
        with torch.inference_mode():
            before, after = (FromPixels(each, INFO).eval()(pixels) for each in networks)
        moved.append(float((before - after).abs().max()))
    dense, quantised = moved
    assert 0 < dense < TIE / 10
    assert 10 * TIE < quantised < 0.1
