"""Find the best linear classifier on the pixels of an archive: what a network has to beat to have learned.

    python -m bench.linear_baseline ARCHIVE.tar.gz      or      python -m bench.linear_baseline demo:

Ridge regression on one-hot targets and multinomial logistic regression, over a grid of L2 penalties, on
pixels with zero mean and unit deviation. Prints one JSON line for each. The best is chosen on the
test images themselves, which favours the linear side.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from job.data.cifar import Split
from job.data.dataset import prepare

RIDGE_ALPHAS = (1e3, 3e3, 1e4, 3e4, 1e5)
LOGISTIC_CS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # inverse penalties
ITERATIONS = 1000  # enough to converge: 250 at the best C on the demo set


def flatten(split: Split) -> NDArray[np.floating[Any]]:
    """Return the images as rows of numbers in [0, 1]."""
    return split.images.reshape(len(split), -1).astype(np.float32) / 255


def main() -> None:
    """Fit every candidate, and print its accuracy on both splits."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m bench.linear_baseline ARCHIVE.tar.gz|demo:")
    source = sys.argv[1] if ":" in sys.argv[1] else Path(sys.argv[1]).resolve().as_uri()
    with tempfile.TemporaryDirectory() as cache:
        dataset = prepare([source], Path(cache)).dataset
    scaler = StandardScaler()
    train, test = scaler.fit_transform(flatten(dataset.train)), scaler.transform(flatten(dataset.test))
    candidates = [RidgeClassifier(alpha=alpha) for alpha in RIDGE_ALPHAS]
    candidates += [LogisticRegression(C=c, max_iter=ITERATIONS) for c in LOGISTIC_CS]
    best = 0.0
    for candidate in candidates:
        started = time.perf_counter()
        candidate.fit(train, dataset.train.labels)
        accuracy = candidate.score(test, dataset.test.labels)
        best = max(best, accuracy)
        row = {
            "classifier": str(candidate),
            "test_accuracy": round(accuracy, 4),
            "train_accuracy": round(candidate.score(train, dataset.train.labels), 4),
            "seconds": round(time.perf_counter() - started, 1),
        }
        print(json.dumps(row), flush=True)
    print(json.dumps({"best_test_accuracy": round(best, 4)}))


if __name__ == "__main__":
    main()
