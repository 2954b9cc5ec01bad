"""An array of runs that differ in their seed only: one task of it finds out which it is."""

from __future__ import annotations

from collections.abc import Mapping

from job.errors import ConfigurationError

SIZE = "MICRONET_ARRAY"
"""Set by `submit --array`; the schedulers' own variables are also there for a job that is no array."""

INDICES = ("AWS_BATCH_JOB_ARRAY_INDEX", "BATCH_TASK_INDEX", "JOB_COMPLETION_INDEX")
"""The index of a task, from 0: AWS Batch, Google Batch, Kubernetes."""


def member(environment: Mapping[str, str], seed: int, run: str | None) -> tuple[int, str | None]:
    """Return the seed and the run of this task: `seed` plus its index, and `run`/seed-SEED.

    Both come back unchanged where the environment speaks of no array. Raises ConfigurationError for an
    array without an index, or one without a run to put its members under.
    """
    size = environment.get(SIZE)
    if not size:
        return seed, run
    found = next((environment[name] for name in INDICES if name in environment), None)
    if found is None:
        raise ConfigurationError(
            f"{SIZE} is {size}, and the scheduler gave no index ({', '.join(INDICES)})",
            f"Submit with `micronet submit --array`, or unset {SIZE}",
        )
    if not (size.isdecimal() and found.isdecimal() and int(found) < int(size)):
        raise ConfigurationError(f"the index {found} lies outside an array of {size}", f"Unset {SIZE}")
    if run is None:
        raise ConfigurationError(f"{SIZE} is {size}, and there is no --run", "Give the prefix of the runs")
    own = seed + int(found)
    return own, f"{run.rstrip('/')}/seed-{own}"
