"""Compiles the training step for a GPU that is not here: `triton_kernels.py SM PRECISION`, such as 90 bf16.

Inductor's graphs of the forward and backward pass, traced on the CPU, are moved to fake CUDA tensors.
Inductor writes Triton kernels for the GPU that it is told of; triton and ptxas compile them. Prints each
kernel's size.
"""

from __future__ import annotations

import copy
import re
import sys
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from functorch.compile import make_boxed_func
from torch._inductor import compile_fx, config
from torch._inductor.codecache import PyCodeCache
from torch._inductor.exc import InductorError
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_heuristics
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from triton.backends.compiler import GPUTarget

from job.network.wide_resnet import wide_resnet
from job.phases import Cycle
from job.recipe import Recipe
from job.train.loader import Images, Normalisation, TrainingBatches
from job.train.trainer import Trainer

Graph = tuple[torch.fx.GraphModule, list[Any], bool]

PROCESSORS = {75: 40, 80: 108, 90: 132}  # of a T4, an A100 and an H100
THREADS = {75: 1024, 80: 2048, 90: 2048}  # on each processor
KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''\n(.*?)'''", re.DOTALL)
MACHINE_CUDA = 190  # EM_CUDA, of the ELF header


class WrittenError(Exception):
    """Inductor has written the code, which is not to be loaded."""


def traced(precision: str) -> list[Graph]:
    """Return the graphs that inductor is given for a step of training, each with example inputs."""
    graphs: list[Graph] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Any], is_backward: bool = False, **_: Any) -> Any:
        graphs.append((copy.deepcopy(graph), inputs, is_backward))
        return make_boxed_func(graph.forward)

    recipe = Recipe(
        depth=10, width=1, cycles=(Cycle(1, 5e-3),), batch_size=16, precision=precision, compile=True
    )
    cpu = torch.device("cpu")
    images = Images(torch.zeros(16, 3, 32, 32, dtype=torch.uint8), torch.arange(16) % 7)
    normalise = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), cpu)
    network = wide_resnet(10, 1, 7).to(memory_format=torch.channels_last)
    with patch.object(compile_fx, "compile_fx", partial(compile_fx.compile_fx, inner_compile=keep)):
        Trainer(network, TrainingBatches(images, 7, normalise, recipe), recipe, lambda: None).train_epoch()
    return graphs


def written(graph: torch.fx.GraphModule, inputs: list[Any], is_backward: bool) -> str:
    """Return the program that inductor writes for the graph on the GPU of `pretended`."""
    device, mode = torch.device("cuda", 0), FakeTensorMode(allow_non_fake_inputs=True)
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": device}

    def moved(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)

    with mode:
        inputs = [moved(value) for value in inputs]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*inputs)
    programs: list[str] = []

    def keep(program: str) -> None:
        programs.append(program)
        raise WrittenError

    with (
        patch.object(GraphLowering, "save_output_code", staticmethod(keep)),
        V.set_fake_mode(mode),
        torch._guards.tracing(torch._guards.TracingContext(mode)),
    ):
        try:
            compile_fx.compile_fx_inner(graph, inputs, is_backward=is_backward)
        except InductorError as error:
            if not isinstance(error.inner_exception, WrittenError):
                raise
    (program,) = programs
    return program


def pretended(stack: ExitStack, sm: int) -> None:
    """Have PyTorch and triton believe in a GPU of compute capability `sm` until the end of `stack`."""
    properties = SimpleNamespace(
        name="pretended", major=sm // 10, minor=sm % 10, multi_processor_count=PROCESSORS[sm],
        total_memory=2**34, regs_per_multiprocessor=65536, max_threads_per_multi_processor=THREADS[sm],
        max_threads_per_block=1024, warp_size=32, shared_memory_per_block_optin=65536,
    )  # fmt: skip
    hint = DeviceProperties("cuda", 0, PROCESSORS[sm], sm, sm // 10, 65536, THREADS[sm], 1024, 32)
    for name, function in {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda._exchange_device": lambda device: 0,
        "torch.cuda._maybe_exchange_device": lambda device: 0,
        "torch.cuda.get_device_properties": lambda device=None: properties,
        "torch.cuda.get_device_capability": lambda device=None: (sm // 10, sm % 10),
        "torch.cuda.get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "torch.cuda.set_rng_state": lambda state, device=None: None,
        "torch._inductor.scheduler.has_triton": lambda: True,
        "torch._inductor.runtime.triton_helpers.set_driver_to_gpu": lambda: None,
    }.items():
        stack.enter_context(patch(name, function))
    stack.enter_context(patch.object(DeviceProperties, "create", lambda device: hint))
    stack.enter_context(config.patch(compile_threads=1, force_disable_caches=True))
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", sm, 32),
            get_current_device=lambda: 0,
            get_active_torch_device=lambda: torch.device("cuda", 0),
        )
    )


def compiled(source: str) -> list[bytes]:
    """Return the machine code of the kernel, for each way that its autotuner would try."""
    binaries = []

    real = triton.compile

    def keep(*arguments: Any, **keywords: Any) -> Any:
        kernel = real(*arguments, **keywords)
        binaries.append(kernel.asm["cubin"])
        return kernel

    module = PyCodeCache.load(source)
    (kernel,) = [
        value for value in vars(module).values() if isinstance(value, triton_heuristics.CachingAutotuner)
    ]
    with patch.object(triton, "compile", keep):
        kernel._precompile_worker()
    return binaries


def main(sm: int, precision: str) -> None:
    graphs = traced(precision)
    with ExitStack() as stack:
        pretended(stack, sm)
        for graph, inputs, is_backward in graphs:
            for name, source in KERNEL.findall(written(graph, inputs, is_backward)):
                for binary in compiled(source):
                    assert binary[:4] == b"\x7fELF"
                    assert int.from_bytes(binary[18:20], "little") == MACHINE_CUDA
                    print("backward" if is_backward else "forward", name, len(binary), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
