"""A GPU on a machine that has none: tensors say that they are on `simgpu:0`, and compute the CPU's bits.

What a GPU refuses is refused here too: operators whose tensors are on two devices, and a host tensor that is
read before the copy to it is done holds garbage. Reads that wait for the device are counted. Faults, a limit
of memory and an operator that never ends can be asked for: see `board`.

`install` it in a process that has not trained yet; `attempts` starts such processes.
"""

from tests.simulated_gpu.board import BOARD, Fault
from tests.simulated_gpu.install import DEVICE, install

__all__ = ["BOARD", "DEVICE", "Fault", "install"]
