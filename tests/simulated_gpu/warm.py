"""What the server of `attempts` imports once, so that an attempt is a fork of it: the device and the job."""

from tests.simulated_gpu.install import install

install()

import torch._dynamo  # noqa: E402 - the first optimizer step imports it
import torch._inductor.config  # noqa: E402, F401 - `use_deterministic_algorithms` does

import job.cli  # noqa: E402 - the device is there before anything looks for one
import job.train.evaluate  # noqa: E402
import job.train.job  # noqa: E402, F401
