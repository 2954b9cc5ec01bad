"""Train, evaluate and score a small CIFAR-100 network as one batch job."""
