"""What compression costs on Fashion-MNIST: paired runs over seeds, at width 1.

    apt-get install dataset-fashion-mnist
    python -m bench.compression FOLDER [--images 20000] [--seeds 22,23,24] [--dense 10@5e-3]

For each seed a dense run, and from its weights two that prune to 75 % zeros and quantise to w4a4: with the
dense network as their teacher, and without. Appends one JSON line a run to FOLDER/results.jsonl and prints,
for each stage, the accuracy lost against the dense run of the same seed, with its 95 % interval, and the
official score. Called again it continues: finished runs are kept, an unfinished one resumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.fashion_mnist import NAMES, read_split
from job.data.pack import write_archive
from job.view.comparison import estimate

TEACHERS = {"teacher": "0.5", "alone": "0"}
"""The share of the teacher's answers, by the runs' names."""


def options() -> argparse.Namespace:
    """Return the command line's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20_000, help="training images")
    parser.add_argument("--seeds", default="22,23,24")
    parser.add_argument("--dense", default="10@5e-3", help="cycles")
    parser.add_argument("--prune", default="5@2e-3", help="cycles")
    parser.add_argument("--quantise", default="5@1e-3", help="cycles")
    return parser.parse_args()


def archive(folder: Path, images: int) -> Path:
    """Return the data set of the first `images` training images and all test images."""
    path = folder / f"fashion-mnist-{images}.tar.gz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_archive(path, read_split("train", images), read_split("t10k", 10_000), NAMES, NAMES)
    return path


def train(run: Path, data: Path, seed: int, words: list[str]) -> dict[str, Any]:
    """Train, or resume, or find finished; return the report."""
    command = [sys.executable, "-m", "job.cli", "train", "--run", str(run), "--data", str(data)]
    command += ["--cache", str(data.parent / "cache"), "--seed", str(seed), "--width", "1"]
    command += ["--batch-size", "128", "--device", "cpu", *words]
    if not (run / "report.json").exists():
        subprocess.run(command, check=True)
    content: dict[str, Any] = json.loads((run / "report.json").read_bytes())
    return content


def stages(name: str, report: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return (accuracy, official score) of each stage of a run."""
    if "phases" not in report:
        return {name: (report["accuracy"]["final"], report["score"]["official"]["score"])}
    kept = {"prune": "75 % zeros", "statistics": "75 % zeros, w4a4"}
    return {
        f"{kept[phase['name']]}, {name}": (phase["accuracy"], phase["score"]["official"])
        for phase in report["phases"]
        if phase["name"] in kept
    }


def runs(chosen: argparse.Namespace, data: Path, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each run of a seed and its report."""
    dense = chosen.folder / f"dense-{seed}"
    yield "dense", train(dense, data, seed, ["--cycles", chosen.dense])
    for name, share in TEACHERS.items():
        words = ["--from", str(dense), "--prune-cycles", chosen.prune, "--quantise-cycles", chosen.quantise]
        yield name, train(chosen.folder / f"{name}-{seed}", data, seed, [*words, "--distillation", share])


def interval(values: list[float]) -> str:
    """Return the mean with its 95 % interval, which three seeds or more have."""
    found = estimate(values)
    return f"{found.mean:+.2f}" + ("" if found.half_width is None else f" ± {found.half_width:.2f}")


def main() -> None:
    """Run what is not there yet, and print the table."""
    chosen = options()
    data = archive(chosen.folder, chosen.images)
    lines = chosen.folder / "results.jsonl"
    done = [json.loads(line) for line in lines.read_text("utf-8").splitlines()] if lines.exists() else []
    for seed in map(int, chosen.seeds.split(",")):
        for name, report in runs(chosen, data, seed):
            if not any((line["seed"], line["run"]) == (seed, name) for line in done):
                done.append({"seed": seed, "run": name, "stages": stages(name, report)})
                with lines.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    dense = {line["seed"]: line["stages"]["dense"][0] for line in done if line["run"] == "dense"}
    print("| stage | accuracy | points lost against dense | official score |\n|---|---|---|---|")
    for stage in dict.fromkeys(stage for line in done for stage in line["stages"]):
        found = [(line["seed"], *line["stages"][stage]) for line in done if stage in line["stages"]]
        lost = interval([100 * (dense[seed] - accuracy) for seed, accuracy, _ in found])
        accuracy, score = (statistics.mean(column) for column in list(zip(*found, strict=True))[1:])
        print(f"| {stage} | {100 * accuracy:.2f} | {lost} | {score:.5f} |")


if __name__ == "__main__":
    main()
