"""Train the network the stock fastai way on class folders of PNG files, to compare `micronet train` with.

    micronet data --data file://$PWD/fashion.tar.gz --export images
    python -m bench.stock_fastai --images images --seed 22

fp32, `aug_transforms()`, `MixUp(0.4)`, `fit_one_cycle` with fastai's own Adam, loss and worker processes.
Prints one JSON line. `fit_seconds` is the whole `fit_one_cycle`, validation and PNG decoding included;
`images_per_second` is the images trained on in that time.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()  # before the imports, which take seconds

import fastai
import numpy as np
import torch
from fastai.vision.all import (
    CrossEntropyLossFlat,
    DataLoaders,
    ImageDataLoaders,
    Learner,
    MixUp,
    Normalize,
    accuracy,
    aug_transforms,
    set_seed,
)
from PIL import Image

from job.network.wide_resnet import wide_resnet


def statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel over the PNG files under `folder`, in [0, 1]."""
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in folder.rglob("*.png")])
    # A histogram is exact and needs no float copy of 150 MB of pixels.
    levels = np.arange(256) / 255
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]
    means = [float(np.average(levels, weights=count)) for count in counts]
    deviations = [
        float(np.sqrt(np.average((levels - mean) ** 2, weights=count)))
        for mean, count in zip(means, counts, strict=True)
    ]
    return means, deviations


def load(images: Path, batch_size: int) -> DataLoaders:
    """Return fastai's loaders with its default augmentation; they keep the images' size."""
    return ImageDataLoaders.from_folder(
        images,
        train="train_data",
        valid="valid_data",
        bs=batch_size,
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*statistics(images / "train_data"), cuda=False)],
        device=torch.device("cpu"),
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="stock fastai on class folders of PNG files")
    parser.add_argument("--images", type=Path, required=True, help="folder with train_data/ and valid_data/")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=22)
    return parser.parse_args()


def main() -> None:
    """Train, and print the result."""
    options = parse()
    set_seed(options.seed)
    loaders = load(options.images, options.batch_size)
    network = wide_resnet(22, options.width, len(loaders.vocab))
    learner = Learner(loaders, network, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=MixUp(0.4))
    started = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(options.epochs, options.lr, wd=0.1)
    fit_seconds = time.perf_counter() - started
    epochs = [[round(value, 6) for value in row] for row in learner.recorder.values]
    print("train_loss, valid_loss, accuracy of each epoch:", epochs, file=sys.stderr)
    trained_on = options.epochs * len(loaders.train) * options.batch_size
    result = {
        "seed": options.seed,
        "accuracy": epochs[-1][-1],
        "fit_seconds": round(fit_seconds, 1),
        "process_seconds": round(time.perf_counter() - STARTED, 1),
        "images_per_second": round(trained_on / fit_seconds, 1),
        "images": {"train": len(loaders.train_ds), "test": len(loaders.valid_ds)},
        "versions": {
            "fastai": fastai.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "workers": loaders.train.fake_l.num_workers,
    }
    print(json.dumps(result))


def cpu_model() -> str:
    """Return the processor's name as the kernel gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
