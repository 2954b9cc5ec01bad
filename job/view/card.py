"""The model card of a finished run: README.md with the front matter that model hubs read.

All that was read from a bucket is text: YAML is written by its library, and Markdown's signs are escaped.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from job.run import layout
from job.run.report import Report
from job.settings import DEMO_DATA
from job.store.base import ConflictError, Store
from job.text import percent
from job.view.frontier import networks
from job.view.stored_run import StoredRun, read

HUB_DATASET = "uoft-cs/cifar100"
"""The data set's name on the Hugging Face hub."""

RECIPE_FIELDS = ("seed", "batch_size", "mixup_alpha", "weight_decay", "crop_padding", "holdout")

USE = """\
```python
from pathlib import Path

import torch
from job.network import weights

network, info = weights.load(Path("weights.safetensors").read_bytes())
mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (info.mean, info.std))


def classify(pixels):
    \"\"\"Map uint8 images [N, 3, 32, 32], red, green and blue, to the names of their classes.\"\"\"
    with torch.inference_mode():
        logits = network.eval()((pixels.float() / 255 - mean) / std)
    return [info.classes[index] for index in logits.argmax(1)]
```
"""

_MARKDOWN = re.compile(r"([\\`*_\[\]<>&|~!$:@#]|(?<=www)\.)", re.IGNORECASE)
"""What can begin or end something in a line of Markdown, GitHub's links, mentions and formulas among it."""


def publish(store: Store) -> str:
    """Write the model card unless there is one, which may have been edited; return its address."""
    with contextlib.suppress(ConflictError):
        store.put_if_absent(layout.CARD, encode(read(store)))
    return f"{store.uri}/{layout.CARD}"


def encode(run: StoredRun) -> bytes:
    """Return the card of a finished run as a file; what UTF-8 cannot write is escaped."""
    assert run.report
    front = yaml.safe_dump(_front_matter(run, run.report), sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{front}---\n\n{_body(run, run.report)}".encode("utf-8", "backslashreplace")


def escape(value: Any) -> str:
    """Return `value` as Markdown that shows it on one line and does nothing else."""
    return _MARKDOWN.sub(r"\\\1", _line(value))


def _line(value: Any) -> str:
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(value)).split())


def _data_name(run: StoredRun, report: Report) -> str:
    if run.on_cifar100:
        return "CIFAR-100"
    if report.data.source == DEMO_DATA:
        return "generated demo images"
    return f"data with the SHA-256 {report.data.sha256[:12]}"


def _front_matter(run: StoredRun, report: Report) -> dict[str, Any]:
    data, scores = _data_name(run, report), report.score.rule_sets()
    metrics = [{"type": "accuracy", "name": "Accuracy", "value": report.accuracy.final}]
    metrics += [
        {
            "type": f"micronet-score-{name}",
            "name": f"MicroNet Challenge score, {name} rules",
            "value": rule_set.score,
        }
        for name, rule_set in scores.items()
    ]
    return {
        "license": "mit",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "wide-resnet", "micronet-challenge", *_compression_tags(report)],
        **({"datasets": [HUB_DATASET]} if run.on_cifar100 else {}),
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": _line(report.model.name),
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image Classification"},
                        "dataset": {
                            "type": HUB_DATASET if run.on_cifar100 else "other",
                            "name": data,
                            "split": "test",
                        },
                        "metrics": metrics,
                    }
                ],
            }
        ],
    }


def _compression_tags(report: Report) -> list[str]:
    phases = {phase.name for phase in report.phases}
    return [tag for phase, tag in (("prune", "pruned"), ("quantise", "quantized")) if phase in phases]


def _body(run: StoredRun, report: Report) -> str:
    accuracy, data, training = report.accuracy, report.data, report.training
    best = accuracy.best
    selected = "test set itself" if best.selected_on == "test" else "hold-out"
    results = [
        (
            "accuracy",
            f"{percent(accuracy.final)}, {accuracy.correct} of {accuracy.total} test images",
        ),
        ("best epoch", f"{percent(best.value)} in epoch {best.epoch}, selected on the {selected}"),
        *((f"score, {name} rules", f"{rules.score:.5f}") for name, rules in report.score.rule_sets().items()),
        ("parameters", f"{report.model.parameters:,}"),
    ]
    facts = [
        ("images", f"{data.train} for training, {data.test} for the test"),
        ("source", data.source),
        ("data, SHA-256", data.sha256),
        ("epochs", training.epochs),
        ("cycles", training.cycles),
        *((name.replace("_", " "), run.recipe[name]) for name in RECIPE_FIELDS if name in run.recipe),
        ("precision", training.precision),
        ("deterministic", "yes" if training.deterministic else "no"),
        ("device", training.device),
        *report.environment.model_dump(exclude_none=True).items(),
        ("run", run.identity),
        ("weights, SHA-256", report.weights.sha256),
    ]
    name, of_data = escape(report.model.name), escape(_data_name(run, report))
    parts = [
        f"# {name} on {of_data}",
        "An image classifier, trained, evaluated and scored by micronet under the rules of the\n"
        "[MicroNet Challenge 2019](https://micronet-challenge.github.io). The accuracy is that of the final\n"
        "weights in fp32; the score is parameters / 36.5 M + operations / 10.49 B, lower is better.",
        _table(("result", ""), results),
        *_phases(run, report),
        "## Use",
        USE.rstrip(),
        "`micronet evaluate` measures the accuracy again; `micronet export` writes the network as ONNX.",
        "## Training",
        _table(("what", ""), facts),
        "## Limits",
        f"It answers with one of its classes to any image, and was measured on {of_data} alone.",
    ]
    return "\n\n".join(parts) + "\n"


def _phases(run: StoredRun, report: Report) -> list[str]:
    if not report.phases:
        return []
    rows = [
        (
            phase.name,
            phase.epochs,
            percent(network.accuracy),
            f"{network.score:.5f}",
            percent(phase.zeros),
            f"{phase.weight_bits}, {phase.activation_bits}",
        )
        for phase, network in zip(report.phases, networks(run), strict=True)
    ]
    columns = (
        "phase",
        "epochs",
        "accuracy",
        "score, official rules",
        "zeros",
        "bits of weights, activations",
    )
    return [
        "After each phase of the training, with zeros and bits of the layers between the first and the last:",
        _table(columns, rows),
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns)]
    lines += [[escape(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
