"""The step on CUDA as far as it can be seen without a GPU: its operators' forms there, and fake tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from job.network.wide_resnet import wide_resnet
from job.train.evaluate import predict
from job.train.loader import Images, Plan
from job.train.step import Precision, loss_scaler
from job.train.trainer import Trainer, adamw
from tests.train.test_phases import RECIPE as COMPACT
from tests.train.test_phases import network as compressible
from tests.train.test_phases import teacher
from tests.train.test_step import Count, batches, fake_plan, recipe

PRECISIONS = ["fp32", "bf16", "fp16"]
CUDA = torch.device("cuda", 0)

RAISING = {
    "torch.nn.AvgPool3d": r"avg_pool3d_backward",
    "torch.nn.AdaptiveAvgPool2d": r"_adaptive_avg_pool2d_backward",
    "torch.nn.AdaptiveAvgPool3d": r"_adaptive_avg_pool3d_backward",
    "torch.nn.AdaptiveMaxPool2d": r"adaptive_max_pool2d_backward",
    "torch.nn.FractionalMaxPool2d": r"fractional_max_pool2d_backward",
    "torch.nn.FractionalMaxPool3d": r"fractional_max_pool3d_backward",
    "torch.nn.MaxUnpool1d": r"max_unpool2d",
    "torch.nn.MaxUnpool2d": r"max_unpool2d",
    "torch.nn.MaxUnpool3d": r"max_unpool3d",
    "torch.nn.functional.interpolate": r"_?upsample_(bi|tri)?(linear|cubic).*_backward",
    "torch.nn.ReflectionPad1d": r"reflection_pad1d_backward",
    "torch.nn.ReflectionPad2d": r"reflection_pad2d_backward",
    "torch.nn.ReflectionPad3d": r"reflection_pad3d_backward",
    "torch.nn.NLLLoss": r"nll_loss(2d)?_forward",
    "torch.nn.CTCLoss": r"_ctc_loss_backward",
    "torch.nn.EmbeddingBag": r"_embedding_bag_(dense_)?backward",
    "torch.Tensor.put_": r"put_?",
    "torch.histc": r"histc",
    "torch.bincount": r"bincount",
    "torch.median": r"(nan)?median",
    "torch.nn.functional.grid_sample": r"grid_sampler_[23]d_backward",
    "torch.Tensor.scatter_reduce": r"scatter_reduce_?",
    "torch.Tensor.resize_": r"resize_?",
}
"""What PyTorch's documentation lists as having no deterministic form on CUDA, as ATen's operators.

Patterns, wider than the list where a condition on arguments makes an operator raise.
"""


def listed() -> set[str]:
    """The functions and modules that raise, from the documentation of the installed torch."""
    text = torch.use_deterministic_algorithms.__doc__ or ""
    raising = text.split("operations will throw a\n")[1].split("In addition,")[0]
    return set(re.findall(r"^ +\* :(?:class|func):`([\w.]+)`", raising, re.MULTILINE))


def raising(operators: Counter[str]) -> set[str]:
    """Those of the operators, `aten.name.overload`, that are on the list."""
    names = {operator.split(".")[1] for operator in operators}
    return {name for name in names for form in RAISING.values() if re.fullmatch(form, name)}


def test_every_entry_of_torchs_list_is_known_and_names_operators() -> None:
    """A torch that lists another operator fails here: give it its pattern."""
    assert listed() == RAISING.keys()
    aten = {name.removeprefix("aten::").split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    for entry, form in RAISING.items():
        assert any(re.fullmatch(form, name) for name in aten), entry


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_operator_of_an_epoch_raises_for_its_determinism(precision: str) -> None:
    """Drawing, augmentation, mixup, forward, loss, backward and optimizer."""
    network = wide_resnet(10, 1, 7).to(memory_format=torch.channels_last)
    trainer = Trainer(network, batches(precision, steps=2), recipe(precision), lambda: None)
    with Count() as count:
        trainer.train_epoch()
    for part in (
        "grid_sampler_2d",
        "lerp",
        "convolution",
        "_log_softmax",
        "convolution_backward",
        "_fused_adamw_",
    ):
        assert any(name.startswith(f"aten.{part}.") for name in count.seen), part
    assert not raising(count.seen)


@pytest.mark.parametrize("weight_bits", [1, 4])
def test_no_operator_of_a_phase_raises_for_its_determinism(weight_bits: int) -> None:
    """Masks, quantisers and their calibration, the teacher, and statistics."""
    trained = replace(COMPACT, weight_bits=weight_bits, batch_size=4, precision="bf16")
    trainer = Trainer(compressible(), batches("bf16", steps=2), trained, lambda: None, teach=teacher)
    with Count() as count:
        while trainer.epoch < trained.epochs:
            trainer.train_epoch()
            trainer.next_epoch()
    for part in ("sort", "index_put_", "round", "hardtanh_backward", "clamp_", "lerp"):
        assert any(name.startswith(f"aten.{part}.") for name in count.seen), part
    assert any("fake_quantize" in name for name in count.seen)
    assert not raising(count.seen)


def test_a_network_with_a_pool_of_the_list_is_seen() -> None:
    network = nn.Sequential(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(2), nn.MaxPool2d(2), nn.Flatten())
    trainer = Trainer(network, batches(steps=2), recipe("fp32"), lambda: None)
    with Count() as count:
        trainer.train_epoch()
    assert raising(count.seen) == {"_adaptive_avg_pool2d_backward"}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Tensors without values that say they are on a GPU; torch is told that there is one.

    It is told after the mode has replaced what would ask a driver, which it does where there is no GPU.
    """
    with FakeTensorMode() as mode:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        yield mode


def on_gpu(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    return mode.from_tensor(tensor).to(CUDA)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_forward_optimizer_and_evaluation_run_on_fake_cuda_tensors(
    precision: str, request: pytest.FixtureRequest
) -> None:
    """All but the backward pass, which autograd does in a thread of the real device."""
    loader, plan = batches(precision, steps=2), fake_plan(2, 4)
    network = wide_resnet(10, 1, 7).to(memory_format=torch.channels_last).requires_grad_(False)
    assert plan.mix
    mode = request.getfixturevalue("cuda")
    for name in ("mean", "std"):
        setattr(loader.normalise, name, on_gpu(mode, getattr(loader.normalise, name)))
    loader.images = Images(*(on_gpu(mode, each) for each in vars(loader.images).values()))
    loader.one_hot = on_gpu(mode, loader.one_hot)
    plan = Plan(
        on_gpu(mode, plan.order),
        type(plan.transforms)(*(on_gpu(mode, each) for each in plan.transforms)),
        type(plan.mix)(*(on_gpu(mode, each) for each in plan.mix)),
    )
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(on_gpu(mode, parameter)))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, on_gpu(mode, buffer))
    model, optimizer = Precision(network, precision), adamw(network.parameters(), 1e-3, 0.1)
    scaler = loss_scaler(precision, CUDA)
    assert scaler.is_enabled() == (precision == "fp16")
    total = torch.zeros((), device=CUDA)
    with Count() as count:
        for step in range(2):
            images, targets = loader.batch(plan, step)
            assert images.is_contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(images), targets)
            assert scaler.scale(loss).device == loss.device == CUDA
            for parameter in network.parameters():
                parameter.grad = torch.empty_like(parameter)
            optimizer.set_hypers(lr=1e-3, mom=0.9)
            scaler.step(optimizer.opt)
            scaler.update()
            total += loss.detach()
    assert {value.device for state in optimizer.opt.state.values() for value in state.values()} == {CUDA}
    assert not raising(count.seen)
    predictions = predict(network, loader.images, loader.normalise, precision)
    assert predictions.logits.shape == (8, 7)
    assert predictions.logits.device.type == "cpu"
