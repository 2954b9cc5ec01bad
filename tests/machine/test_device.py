"""What a process is set to before it trains."""

import subprocess
import sys

FAULTS = """
import resource
import torch
from job.machine import device

def steps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

device.configure(deterministic=True)
steps()  # the heap finds its shape: the first five at most grow it
print(steps())
"""


def test_a_step_uses_the_memory_that_the_one_before_freed() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    pages_of_one = 10_000_000 * 4 / 4096
    assert int(done.stdout) < pages_of_one  # given back to the system, each of the 20 has its own cleared
