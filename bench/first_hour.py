"""The stages of the first hour on a GPU, each within ten minutes; called by bench/first_hour.sh.

A stage is one or more commands and leaves FOLDER/STAGE.json, its commands' output and logs, and a line in
FOLDER/lines.txt with the predictions next to the results. Called again, it leaves out those that have passed;
stages that are named are done in any case. A stage that fails keeps no other from running; the exit code is
then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.predictions import PREDICTIONS, compare, line
from job.checks.laboratory import write_data
from job.commands.bench import PARTS

LIMIT_SECONDS = 570.0
TIMED_OUT = 124
PARALLEL = "parallel"
"""The part of `micronet bench` that has a stage of its own."""

ROOT = Path(__file__).parent.parent
JOB = (sys.executable, "-m", "job.cli")

Parts = dict[str, list[str]]
"""The commands of a stage, by the names of their results."""


@dataclass(frozen=True)
class Hour:
    """Where and in which form it is done."""

    out: Path
    device: str
    quick: bool
    data: str | None  # an archive in CIFAR-100's format; None: that of --demo
    gpus: int = 1

    def stages(self) -> dict[str, Parts]:
        """Return all stages in their order."""
        return {
            "doctor": {"doctor": [*JOB, "doctor", "--json", "--run", f"{self.out}/run", *self._where()]},
            "smoke": {"smoke": self._program("smoke", *self._small("--steps", "4"))},
            "selftest": {"selftest": self._selftest()},
            "demo": {"stopped": self._demo()},
            "bench": self._bench(),
            "variants": self._variants(),
            PARALLEL: self._parallel(),
            "fashion": {"seeds": self._fashion()},
            "epoch": {"seeds": self._epoch()},
            "profile": {"profiler": self._program("profiler", *self._small("--steps", "2", "--width", "1"))},
            "sanitizer": self._sanitizer(),
        }

    def _program(self, name: str, *words: str) -> list[str]:
        return [sys.executable, "-m", f"bench.{name}", "--device", self.device, *words]

    def _runs(self, *words: str, demo: bool = False) -> list[str]:
        small = self._small("--width", "1")
        return [sys.executable, "-m", "bench.runs", *words, *self._where(demo), *small]

    def _small(self, *words: str) -> list[str]:
        """Return what makes a command short in the quick form."""
        return ["--depth", "10", "--batch-size", "16", *words] if self.quick else []

    def _where(self, demo: bool = False) -> list[str]:
        source = ["--demo"] if not self.data or (demo and not self.quick) else ["--data", self.data]
        return [*source, "--cache", f"{self.out}/cache", "--device", self.device]

    def _selftest(self) -> list[str]:
        store = f"{self.out}/selftest-store"
        kills = "1" if self.quick else "5"
        return [*JOB, "selftest", "--run", store, "--kills", kills, "--device", self.device]

    def _demo(self) -> list[str]:
        return self._runs("stopped", "--cycles", "12@2e-2" if self.quick else "6@2e-2", demo=True)

    def _bench_command(self, *words: str) -> list[str]:
        return [*JOB, "bench", "--json", "--device", self.device, *words]

    def _bench(self) -> Parts:
        if self.quick:
            words = ("--part", "host", "--part", "determinism", "--rounds", "1", "--seconds", "0.1s")
            return {
                "bench": self._bench_command(*words, *self._small("--width", "1")),
                "job": self._program("step", *self._small("--width", "1")),
            }
        return {
            "bench": self._bench_command(
                "--rounds", "4", *(f"--part={part}" for part in PARTS if part != PARALLEL)
            ),
            "job": self._program("step", "--batch-size", "256"),
            "stock": self._program("step", "--batch-size", "256", "--loop", "stock"),
        }

    def _variants(self) -> Parts:
        if self.quick:
            words = ("--part", "determinism", "--rounds", "1", "--seconds", "0.1s", "--precision", "fp16")
            return {"fp16": self._bench_command(*words, *self._small("--width", "1"))}
        each = {
            "graph": ["--graph"],
            "graph_k1": ["--graph", "--width", "1"],
            "plain_k1": ["--width", "1"],
            "fp16": ["--precision", "fp16"],
            "batch512": ["--batch-size", "512"],
            "compile": ["--compile", "--cache", f"{self.out}/cache"],
        }
        loop = ("--part", "loop", "--rounds", "2")
        return {name: self._bench_command(*loop, *words) for name, words in each.items()}

    def _parallel(self) -> Parts:
        """Measure what shards cost on one GPU; on several, check the model of these and prove their bits."""
        rounds, seconds = ("1", "0.1s") if self.quick else ("4", "2s")
        words = ("--rounds", rounds, "--seconds", seconds, *self._small("--width", "1"))
        parts = {"bench": self._bench_command("--part", PARALLEL, *words)}
        if self.gpus > 1 and not self.quick:
            parts["selftest"] = [*self._selftest(), "--processes", str(self.gpus)]
        return parts

    def _fashion(self) -> list[str]:
        seeds, cycles = ("22", "1@5e-3") if self.quick else ("22,23,24", "3@5e-3")
        return self._runs("seeds", seeds, "--width", "1", "--cycles", cycles, "--crop-padding", "0")

    def _epoch(self) -> list[str]:
        return self._runs("seeds", "22", "--width", "6", "--cycles", "1@5e-3", "--batch-size", "256")

    def _sanitizer(self) -> Parts:
        smoke = self._program("smoke", "--steps", "3", "--batch-size", "8", "--precision", "bf16")
        if shutil.which("compute-sanitizer"):
            return {"memcheck": ["compute-sanitizer", "--error-exitcode", "1", *smoke]}
        return {"absent": ["printf", "there is no compute-sanitizer here"]}


def perform(out: Path, stage: str, parts: Parts, gpu: str) -> int:
    """Run a stage's commands one after another; write what it found, and return its exit code."""
    began = time.monotonic()
    codes, results = {}, {}
    for part, command in parts.items():
        output, log = out / f"{stage}.{part}.out", out / f"{stage}.{part}.log"
        codes[part] = execute(command, output, log, began + LIMIT_SECONDS - time.monotonic())
        results[part] = parse(output.read_text(encoding="utf-8"))
    seconds = round(time.monotonic() - began, 1)
    compared = compare(PREDICTIONS.get(stage, []), results, gpu)
    code = next((code for code in codes.values() if code), 0)
    if not code and any(each["everywhere"] and each["held"] is False for each in compared):
        code = 1
    content = {"stage": stage, "gpu": gpu, "exit_code": code, "exit_codes": codes, "seconds": seconds}
    content |= {"predictions": compared, "results": results}
    path = out / f"{stage}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = line(stage, code, seconds, compared)
    print(text, flush=True)
    with (out / "lines.txt").open("a", encoding="utf-8") as lines:
        lines.write(text + "\n")
    return code


def execute(command: list[str], output: Path, log: Path, seconds: float) -> int:
    """Run a command and, at the end of its time, kill it with all that it started; return its exit code."""
    with output.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=ROOT, start_new_session=True
        )
        try:
            return process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return TIMED_OUT


def parse(text: str) -> Any:
    """Return a command's JSON, or its lines where it prints text."""
    try:
        return json.loads(text)
    except ValueError:
        return {"lines": text.splitlines()}


def passed(out: Path, stage: str) -> bool:
    """Return whether an earlier call did this stage without a failure."""
    path = out / f"{stage}.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["exit_code"] == 0


def gpu_names() -> list[str]:
    """Return the GPUs' names as the driver has them, none without a driver."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()


def main() -> None:
    """Do the stages."""
    names = list(Hour(Path(), "", quick=False, data=None).stages())
    parser = argparse.ArgumentParser(prog="bench/first_hour.sh", description=__doc__)
    parser.add_argument("stage", nargs="*", help=f"of {', '.join(names)}; default: what has not passed yet")
    parser.add_argument(
        "--quick", action="store_true", help="the smallest form, on the processor, two stages at a time"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("first-hour"), help="folder of the results")
    parser.add_argument(
        "--data", metavar="ARCHIVE", help="such as `python -m bench.fashion_mnist` makes; default: --demo's"
    )
    options = parser.parse_args()
    if unknown := set(options.stage) - set(names):
        parser.error(f"there is no stage {', '.join(sorted(unknown))}")
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    data = str(Path(options.data).absolute()) if options.data else None
    if options.quick and not data:
        data = str(out / "data.tar.gz")
        write_data(Path(data))
    gpus = gpu_names()
    hour = Hour(out, "cpu" if options.quick else options.device, options.quick, data, len(gpus))
    due = {
        stage: parts
        for stage, parts in hour.stages().items()
        if (stage in options.stage if options.stage else not passed(out, stage))
    }
    gpu = gpus[0] if gpus else ""
    with ThreadPoolExecutor(2 if options.quick else 1) as pool:
        codes = list(pool.map(lambda stage: perform(out, stage, due[stage], gpu), due))
    if any(codes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
