import torch

from job.recipe import Recipe
from job.train.loader import Images, Normalisation, TrainingBatches

CPU = torch.device("cpu")
UNIT = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), CPU)


def images(count: int) -> Images:
    """Return `count` images, each of one grey level that is its index, labelled with the index."""
    index = torch.arange(count)
    return Images(index.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous(), index)


def batches(count: int = 100, **recipe: object) -> TrainingBatches:
    return TrainingBatches(images(count), count, UNIT, Recipe(batch_size=16, **recipe))  # type: ignore[arg-type]


def test_an_epoch_holds_each_image_once_and_drops_the_last_partial_batch() -> None:
    loader = batches(mixup_alpha=0.0)
    labels = torch.cat([targets.argmax(1) for _, targets in loader])
    assert len(loader) == 6
    assert len(labels) == 96
    assert len(labels.unique()) == 96


def test_a_step_is_a_function_of_seed_epoch_and_step_alone() -> None:
    loader, again = batches(), batches()
    loader.seek(3, 0)
    again.seek(3, 0)
    list(again)  # what was drawn before must not matter
    again.seek(3, 0)
    torch.manual_seed(999)
    for (x, y), (other_x, other_y) in zip(list(loader), list(again), strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def test_an_epoch_goes_on_from_any_step() -> None:
    whole, part = batches(), batches()
    part.seek(0, 4)
    for (x, y), (other_x, other_y) in zip(list(whole)[4:], list(part), strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def test_epochs_steps_and_seeds_differ() -> None:
    loader, other_seed = batches(), batches(seed=23)
    first = [y for _, y in loader]
    loader.seek(1, 0)
    second = [y for _, y in loader]
    third = [y for _, y in other_seed]
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], third[0])
    shares = {tuple(y.max(1).values.tolist()) for y in first}
    assert len(shares) == len(first)  # each step draws its own mixup


def test_labels_stay_with_their_images() -> None:
    # Lighting aside, an image of one level stays at that level under every map of coordinates.
    for x, y in batches(mixup_alpha=0.0):
        level = x.mean((1, 2, 3))
        index = y.argmax(1).float() / 255
        logit = torch.logit(level, 1e-7) - torch.logit(index, 1e-7)
        assert (logit.abs() <= 0.41 * 1.25 + 0.25 * torch.logit(index, 1e-7).abs() + 1e-3).all()
        assert torch.allclose(x, level.view(-1, 1, 1, 1).expand_as(x), atol=1e-5)


def test_batches_are_normalised_and_channels_last() -> None:
    normalise = Normalisation((0.1, 0.2, 0.3), (0.5, 0.25, 2.0), CPU)
    pixels = torch.full((2, 3, 4, 4), 0.6)
    expected = torch.tensor([(0.6 - 0.1) / 0.5, (0.6 - 0.2) / 0.25, (0.6 - 0.3) / 2.0])
    result = normalise(pixels)
    assert torch.allclose(result[1, :, 2, 3], expected)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_holdout_splits_the_images_once_for_a_seed() -> None:
    training, holdout = images(100).split(10, seed=1)
    assert sorted(torch.cat((training.labels, holdout.labels)).tolist()) == list(range(100))
    assert len(holdout) == 10
    assert torch.equal(images(100).split(10, seed=1)[1].labels, holdout.labels)
    assert not torch.equal(images(100).split(10, seed=2)[1].labels, holdout.labels)
