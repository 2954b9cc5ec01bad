"""The wiring to fastai against the recipe's formulas, written out in plain tensors; and its exact resume."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from job.network.wide_resnet import wide_resnet
from job.phases import Cycle
from job.recipe import Recipe
from job.run.state import TrainingState, largest
from job.train.loader import Images, Normalisation, TrainingBatches
from job.train.trainer import Trainer, adamw

CPU = torch.device("cpu")
RECIPE = Recipe(depth=10, width=1, cycles=(Cycle(1, 5e-3), Cycle(1, 1e-3)), batch_size=4, precision="fp32")
STEPS = 4


def batches(recipe: Recipe = RECIPE) -> TrainingBatches:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(
        0, 256, (recipe.batch_size * STEPS + 3, 3, 32, 32), generator=generator, dtype=torch.uint8
    )
    labels = torch.randint(0, 7, (len(pixels),), generator=generator)
    normalise = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), CPU)
    return TrainingBatches(Images(pixels, labels), 7, normalise, recipe)


def network() -> torch.nn.Sequential:
    torch.manual_seed(22)
    return wide_resnet(10, 1, 7).to(memory_format=torch.channels_last)


MOST = largest(network().state_dict())


def run(trainer: Trainer) -> list[dict[str, float]]:
    """Train to the end; return the records of the epochs."""
    records = []
    while trainer.epoch < trainer.recipe.epochs:
        records.append(trainer.train_epoch())
        trainer.next_epoch()
    return records


def assert_same_bits(one: Trainer, other: Trainer) -> None:
    """Compare networks and optimizers."""
    first, second = one.state(history=[]), other.state(history=[])
    assert all(torch.equal(tensor, second.network[name]) for name, tensor in first.network.items())
    assert first.scaler == second.scaler
    for mine, theirs in zip(first.optimizer, second.optimizer, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_adam_is_v1s_on_a_scalar() -> None:
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = adamw([parameter], lr=0.0, weight_decay=0.1)
    p, m, v = 2.0, 0.0, 0.0
    gradients, rates, momenta = [0.5, -1.0, 0.25], [1e-3, 5e-3, 2e-3], [0.95, 0.85, 0.9]
    for t, (g, lr, beta1) in enumerate(zip(gradients, rates, momenta, strict=True), start=1):
        parameter.grad = torch.tensor([g])
        optimizer.set_hypers(lr=lr, mom=beta1)
        optimizer.step()
        p *= 1 - lr * 0.1
        m, v = beta1 * m + (1 - beta1) * g, 0.99 * v + 0.01 * g * g
        p -= lr * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - 0.99**t)) + 1e-8)
    assert parameter.item() == pytest.approx(p, rel=1e-6)


def test_two_cycles_of_training_are_the_recipes_formulas_step_by_step() -> None:
    """Loss, Adam on all parameters and one-cycle over 2 x 4 steps; the moments carry over between cycles."""
    trained, reference = network(), network()
    records = run(Trainer(trained, batches(), RECIPE, after_step=lambda: None))

    loader, parameters = batches(), list(reference.parameters())
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    reference.train()
    t, losses = 0, []
    for epoch, peak in enumerate((5e-3, 1e-3)):
        # 4 steps: int(1.2) = 1 up and 3 down.
        down = [peak / 25e4 + (peak - peak / 25e4) / 2 * (1 + math.cos(math.pi * i / 3)) for i in range(3)]
        momenta = [0.95] + [0.95 - 0.1 / 2 * (1 + math.cos(math.pi * i / 3)) for i in range(3)]
        loader.seek(epoch, 0)
        for (images, targets), lr, beta1 in zip(loader, [peak / 25, *down], momenta, strict=True):
            t += 1
            loss = -(targets * F.log_softmax(reference(images), dim=1)).sum(1).mean()
            gradients = torch.autograd.grad(loss, parameters)
            losses.append(loss.item())
            with torch.no_grad():
                for p, g, (m, v) in zip(parameters, gradients, moments, strict=True):
                    p.mul_(1 - lr * 0.1)
                    m.mul_(beta1).add_(g, alpha=1 - beta1)
                    v.mul_(0.99).addcmul_(g, g, value=0.01)
                    p.sub_(lr * (m / (1 - beta1**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8))
    # Adam's first step is lr times the gradient's sign, of rounding noise too where that is near 0: what must
    # agree is each tensor's whole way from its start.
    for name, start in network().named_parameters():
        way, expected = trained.get_parameter(name) - start, reference.get_parameter(name) - start
        assert (way - expected).norm() < 3e-2 * expected.norm(), name
    for name, expected in reference.named_buffers():
        assert torch.allclose(trained.get_buffer(name), expected, rtol=1e-2, atol=2e-3), name
    assert [record["train_loss"] for record in records] == pytest.approx(
        [sum(losses[:4]) / 4, sum(losses[4:]) / 4], rel=1e-4
    )
    assert records[1]["lr"] == pytest.approx(lr)
    assert records[1]["momentum"] == pytest.approx(beta1)


def test_the_networks_device_is_the_images() -> None:
    trainer = Trainer(network(), batches(), RECIPE, after_step=lambda: None)
    assert trainer.learner.dls.device == CPU  # and not fastai's default, the first GPU


def test_bf16_changes_the_arithmetic_and_not_the_weights_type() -> None:
    in_fp32, in_bf16 = network(), network()
    Trainer(in_fp32, batches(), RECIPE, after_step=lambda: None).train_epoch()
    recipe = replace(RECIPE, precision="bf16")
    Trainer(in_bf16, batches(recipe), recipe, after_step=lambda: None).train_epoch()
    assert {tensor.dtype for tensor in in_bf16.parameters()} == {torch.float32}
    assert not torch.equal(in_fp32.get_parameter("stem.weight"), in_bf16.get_parameter("stem.weight"))


@functools.cache
def undisturbed(precision: str) -> tuple[Trainer, list[dict[str, float]], dict[tuple[int, int], bytes]]:
    """Return a finished training, its records, and its state at each place, by (epoch, step).

    Taking the states changes no bit.
    """
    recipe = replace(RECIPE, precision=precision)
    states: dict[tuple[int, int], bytes] = {}

    def keep() -> None:
        states[whole.epoch, whole.step] = whole.state(history=[]).encode()

    whole = Trainer(network(), batches(recipe), recipe, after_step=keep)
    records = []
    while whole.epoch < recipe.epochs:
        keep()
        records.append(whole.train_epoch())
        keep()
        whole.next_epoch()
    plain = Trainer(network(), batches(recipe), recipe, after_step=lambda: None)
    run(plain)
    assert_same_bits(plain, whole)
    return whole, records, states


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (0, 3), (0, STEPS), (1, 0), (1, 2)])
def test_a_state_goes_on_to_the_same_bits_from_any_step(epoch: int, step: int, precision: str) -> None:
    recipe = replace(RECIPE, precision=precision)
    whole, records, states = undisturbed(precision)
    data = states[epoch, step]
    torch.manual_seed(4711)
    second = Trainer(
        wide_resnet(10, 1, 7).to(memory_format=torch.channels_last), batches(recipe), recipe, lambda: None
    )
    second.restore(TrainingState.decode(data, MOST))
    assert (second.epoch, second.step) == (epoch, step)
    resumed = run(second)
    assert_same_bits(whole, second)
    assert resumed[-1]["train_loss"] == records[-1]["train_loss"]
    assert resumed[-1]["lr"] == records[-1]["lr"]


def test_the_loss_scale_goes_round() -> None:
    recipe = replace(RECIPE, precision="fp16")
    first, second = (Trainer(network(), batches(recipe), recipe, after_step=lambda: None) for _ in range(2))
    first.scaler.load_state_dict({**first.scaler.state_dict(), "scale": 512.0, "_growth_tracker": 7})
    second.restore(TrainingState.decode(first.state(history=[]).encode(), MOST))
    state = second.scaler.state_dict()
    assert (state["scale"], state["_growth_tracker"]) == (512.0, 7)


def test_a_state_whose_layout_was_lost_goes_on_to_the_same_bits() -> None:
    """Contiguous moments under channels_last weights are what a fused step silently gets wrong."""
    whole = Trainer(network(), batches(), RECIPE, after_step=lambda: None)
    run(whole)
    first = Trainer(network(), batches(), RECIPE, after_step=lambda: None)
    first.train_epoch()
    first.next_epoch()
    state = first.state(history=[])
    flat = state.model_copy(
        update={
            "network": {name: tensor.contiguous() for name, tensor in state.network.items()},
            "optimizer": [
                {name: tensor.contiguous() for name, tensor in moments.items()} for moments in state.optimizer
            ],
        }
    )
    second = Trainer(network(), batches(), RECIPE, after_step=lambda: None)
    second.restore(TrainingState.decode(flat.encode(), MOST))
    moments = second.learner.opt.opt.state[second.network.get_parameter("block1.conv1.weight")]
    assert moments["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    run(second)
    assert_same_bits(whole, second)


def test_a_state_is_a_copy() -> None:
    trainer = Trainer(network(), batches(), RECIPE, after_step=lambda: None)
    trainer.train_epoch()
    before = trainer.state(history=[]).encode()
    state = trainer.state(history=[])
    trainer.next_epoch()
    trainer.train_epoch()
    assert state.encode()[:200_000] == before[:200_000]
    assert all(
        torch.equal(tensor, TrainingState.decode(before, MOST).network[name])
        for name, tensor in state.network.items()
    )
