"""The exit codes of the code, of the README and of the table agree, and are what was designed."""

import inspect
import re
from pathlib import Path

from job import errors

ROOT = Path(__file__).parent.parent

DESIGNED = {
    0: "done", 1: "fail", 2: "fail", 65: "fail", 74: "retry", 75: "retry", 76: "fail", 77: "fail", 78: "fail",
}  # fmt: skip


def test_the_table_is_the_designed_one() -> None:
    assert [row.code for row in errors.TABLE] == sorted(DESIGNED)
    assert {row.code: row.action.value for row in errors.TABLE} == DESIGNED
    assert {row.code: row.action.value for row in errors.BY_SIGNAL} == {137: "retry", 143: "fail"}
    assert errors.RETRYABLE == (74, 75, 137)


def test_each_error_exits_with_a_code_of_the_table() -> None:
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    codes = {kind.exit_code for kind in classes if issubclass(kind, errors.ExplainedError)}
    assert codes == set(DESIGNED) - {0}


def test_each_error_has_the_code_of_its_meaning() -> None:
    named = {
        errors.BUG: errors.JobError,
        errors.USAGE: errors.UsageError,
        errors.DATA: errors.DataError,
        errors.MACHINE: errors.MachineError,
        errors.PREEMPTED: errors.PreemptedError,
        errors.FENCED: errors.FencedError,
        errors.REFUSED: errors.PermissionRefusedError,
        errors.CONFIGURATION: errors.ConfigurationError,
    }
    assert {row.code: kind.exit_code for row, kind in named.items()} == {row.code: row.code for row in named}
    assert set(named) == set(errors.TABLE) - {errors.SUCCESS}


def test_the_readme_has_the_same_table() -> None:
    section = (ROOT / "README.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \|[^|]*\| ([a-z]+)[^|]*\|$", section, re.MULTILINE)
    killed = {errors.KILLED.code: errors.KILLED.action.value}
    assert {int(code): {"nothing": "done"}.get(first, first) for code, first in rows} == DESIGNED | killed
