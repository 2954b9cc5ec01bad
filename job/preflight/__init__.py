"""What must hold before a run begins: looked at by `micronet doctor`, and at the start of `train`."""
