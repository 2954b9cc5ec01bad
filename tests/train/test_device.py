"""What a process is set to before it trains."""

import subprocess
import sys

FAULTS = """
import resource
import torch
from job.train import device

device.configure(deterministic=True)
torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_step_uses_the_memory_that_the_one_before_freed() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    pages = 10_000_000 * 4 / 4096  # of a tensor; the second may still find no room in what the first left
    assert int(done.stdout) < 2 * pages  # 20 * pages where each has its own cleared
