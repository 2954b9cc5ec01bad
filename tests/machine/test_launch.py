"""The exit code of a job of several processes, by those of the processes."""

import signal

import pytest

from job.errors import MachineError
from job.machine.launch import job_code


def test_a_process_that_a_signal_without_a_name_ended_is_the_machines_fault() -> None:
    with pytest.raises(MachineError, match="process 1 was ended by signal 40"):
        job_code({0: 74, 1: -40})
    with pytest.raises(MachineError, match="process 0 was ended by SIGKILL"):
        job_code({0: -signal.SIGKILL, 1: 74})
