"""How long a process takes from its start to the first step when it resumes a run.

    python -m bench.resume --data file://$PWD/fashion.tar.gz

Trains until a checkpoint is durable, kills the process, and starts the same command again several times,
killing each after its first step: with the run in a folder, then in a real S3 server on loopback. The data
are unpacked in the cache. Prints JSON with the parts of the start, as the event `first_step` has them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
from pathlib import Path

import torch

from job.checks.bench.timing import spread
from job.checks.child import Event, named, started
from job.machine import device as devices
from job.machine.preemption import Preemption
from tests.servers import SeaweedFS

BUCKET = "bench"
PARTS = ("after_seconds", "imports", "data", "resume", "step")


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--width", default="6")
    parser.add_argument("--batch-size", default="64")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    result: dict[str, object] = {"machine": devices.machine(torch.device("cpu")), "width": options.width}
    with tempfile.TemporaryDirectory(prefix="bench-resume-") as folder:
        server = SeaweedFS(Path(folder, "seaweedfs"))
        try:
            server.start()
            server.client().create_bucket(Bucket=BUCKET)
            os.environ.update(server.environment())
            for name, run in (("folder", f"{folder}/run"), ("s3", f"s3://{BUCKET}/run")):
                command = [
                    "--run", run, "--data", options.data, "--cache", f"{folder}/cache", "--device", "cpu",
                    "--width", options.width, "--batch-size", options.batch_size, "--checkpoint-every", "1s",
                ]  # fmt: skip
                first_steps(command, "checkpoint")
                events = [first_steps(command, "first_step") for _ in range(options.times)]
                result[name] = {part: spread([event[part] for event in events]) for part in PARTS}
        finally:
            server.stop()
    print(json.dumps(result, indent=2))


def first_steps(command: list[str], until: str) -> Event:
    """Start the command, kill it after its event `until` and return that event."""
    with started(command, Preemption(30)) as child:
        event = child.until(named(until))
        if event is None:
            raise SystemExit(child.last_words())
        child.signal(signal.SIGKILL)
        return event


if __name__ == "__main__":
    main()
