"""The model card: front matter that a hub reads, a body for people, and nothing that a bucket can inject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from job.network import weights
from job.network.weights import NetworkInfo
from job.store import open_store
from job.view import card
from job.view.stored_run import StoredRun, read
from tests.view.runs import altered, write_run

HOSTILE = (
    "x](javascript:alert(1)) <img src=x onerror=alert(1)> `a` **b** | c\n---\ntags: [evil]\n# d\n![e](http://f)"
    " https://evil.example www.evil.example &amp; \\ \u202e\x1b[31m"
)


def stored(folder: Path, **how: Any) -> StoredRun:
    store = open_store(str(folder))
    write_run(store, epochs=3, **how)
    return read(store)


def parts(data: bytes) -> tuple[dict[str, Any], str]:
    """Return front matter and body as a hub splits them: at the lines of three hyphens."""
    begin, front, body = data.decode().split("---\n", 2)
    assert begin == ""
    return yaml.safe_load(front), body


def tokens(markdown: str) -> list[Token]:
    found = MarkdownIt("commonmark").enable("table").parse(markdown)
    return [*found, *(child for token in found for child in token.children or [])]


def texts(markdown: str) -> list[str]:
    return ["".join(child.content for child in token.children or []) for token in tokens(markdown)]


def test_the_front_matter_says_what_the_report_says(tmp_path: Path) -> None:
    run = stored(tmp_path, compressed=True)
    front, _ = parts(card.encode(run))
    assert (front["license"], front["pipeline_tag"]) == ("mit", "image-classification")
    assert (front["datasets"], front["metrics"]) == (["uoft-cs/cifar100"], ["accuracy"])
    assert {"pruned", "quantized"} < set(front["tags"])
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert model["name"] == "WideResNet-22-6"
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"type": "uoft-cs/cifar100", "name": "CIFAR-100", "split": "test"}
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values["accuracy"] == 0.8031
    assert values["micronet-score-official"] == 0.0543
    assert values["micronet-score-leaderboard"] == pytest.approx(0.463465, abs=1e-6)


def test_the_body_has_the_phases_with_their_scores(tmp_path: Path) -> None:
    _, body = parts(card.encode(stored(tmp_path / "a", compressed=True)))
    shown = texts(body)
    for row in (
        ["dense", "600", "80.93 %", "0.33085", "0.00 %", "32, 32"],
        ["statistics", "1", "80.31 %", "0.05430", "75.00 %", "4, 4"],
    ):
        start = shown.index(row[0])
        cells = [text for text in shown[start : start + 30] if text]
        assert cells[: len(row)] == row
    _, dense = parts(card.encode(stored(tmp_path / "b")))
    assert "phase" not in dense


def test_what_was_not_trained_on_cifar100_does_not_claim_it(tmp_path: Path) -> None:
    front, body = parts(card.encode(stored(tmp_path, data_sha256="ab" * 32)))
    assert "datasets" not in front
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == "data with the SHA-256 abababababab"
    assert "CIFAR" not in body


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = altered(
        stored(tmp_path, run_id=HOSTILE),
        {"model.name": HOSTILE, "data.source": HOSTILE, "environment.image": HOSTILE},
    )
    run.recipe["seed"] = HOSTILE
    front, body = parts(card.encode(run))
    assert front["model-index"][0]["name"] == card._line(HOSTILE)
    assert "evil" not in front["tags"]
    harmless = parts(card.encode(stored(tmp_path / "harmless")))[1]
    for kind in (
        "link_open",
        "image",
        "html_inline",
        "html_block",
        "code_inline",
        "strong_open",
        "heading_open",
    ):
        assert [token.type for token in tokens(body)].count(kind) == [
            token.type for token in tokens(harmless)
        ].count(kind), kind
    assert {token.attrs.get("href") for token in tokens(body) if token.type == "link_open"} == {
        "https://micronet-challenge.github.io"
    }
    assert texts(body).count(card._line(HOSTILE)) == 4
    assert "\x1b" not in body
    assert "\u202e" not in body


def test_the_code_it_shows_classifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = NetworkInfo(10, 1, ("a", "b"), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), "0" * 64)
    (tmp_path / "weights.safetensors").write_bytes(weights.save(info.build(), info))
    monkeypatch.chdir(tmp_path)
    (fence,) = (token for token in tokens(parts(card.encode(stored(tmp_path)))[1]) if token.type == "fence")
    names: dict[str, Any] = {}
    exec(fence.content, names)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert set(names["classify"](pixels)) <= {"a", "b"}
    assert len(names["classify"](pixels)) == 3


def test_a_card_that_someone_wrote_is_kept(tmp_path: Path) -> None:
    stored(tmp_path)
    assert card.publish(open_store(str(tmp_path))) == f"{tmp_path}/README.md"
    assert (tmp_path / "README.md").read_bytes() == card.encode(read(open_store(str(tmp_path))))
    (tmp_path / "README.md").write_text("mine")
    card.publish(open_store(str(tmp_path)))
    assert (tmp_path / "README.md").read_text() == "mine"
