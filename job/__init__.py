"""Train, evaluate and score a small CIFAR-100 network as one batch job."""

import time

VERSION = "0.1.0"

STARTED = time.monotonic()
"""When the program began. The process may be older: setup.sh installs before it becomes this program."""
