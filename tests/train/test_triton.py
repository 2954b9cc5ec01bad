"""`--compile` on GPUs that are not here: their machine code can be made without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("triton_kernels.py")
ROOT = PROGRAM.parents[2]


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("sm", "precision"), [("75", "fp16"), ("80", "bf16"), ("90", "bf16"), ("90", "fp32")]
)
def test_every_kernel_of_a_step_becomes_machine_code(sm: str, precision: str, tmp_path: Path) -> None:
    """Needs a minute of one core each: 150 programs, of 70 kernels."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "inductor")
    done = subprocess.run(
        [sys.executable, PROGRAM, sm, precision], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    kernels = {line.rpartition(" ")[0] for line in lines}
    print(sm, precision, len(kernels), "kernels", len(lines), "programs")
    for direction in ("forward", "backward"):
        assert sum(kernel.startswith(direction) for kernel in kernels) >= 10
    assert any("native_batch_norm" in kernel for kernel in kernels)
    assert all(int(line.rpartition(" ")[2]) > 1000 for line in lines)
