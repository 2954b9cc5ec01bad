"""The preconditions of a run, checked by `micronet doctor` and at the start of `train`."""
