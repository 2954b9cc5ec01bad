"""The display of a training on real terminals, and what a file gets instead."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from job import events
from job.phases import DENSE, PRUNE, Cycle, Phase, in_order
from job.progress import STEADY_STEPS, Progress, Startup, Workload, spark_line
from tests.archives import write_archive
from tests.forked import micronet
from tests.terminals import Terminal

ONE_CYCLE = [Phase(DENSE, 0, (Cycle(2, 0.1),))]
CYCLES = [Phase(DENSE, 0, (Cycle(2, 0.1), Cycle(3, 0.1)))]

# Two cycles of 2 and 3 epochs of 40 steps; epoch 3 is not evaluated.
TRAINING = """
import sys, time
from job import events
from job.phases import DENSE, Cycle, Phase
from job.progress import Progress, Workload
events.configure(sys.argv[1])
phases = [Phase(DENSE, 0, (Cycle(2, 0.1), Cycle(3, 0.1)))]
progress = Progress(Workload(phases, 40, 256, lambda epoch, step: (10.0 ** -(1 + epoch), 0.9)), lambda: 23.0)
progress.begin_at(1, 10, [{"epoch": 1, "train_loss": 3.0, "accuracy": 0.25, "images_per_second": 800.0}])
with progress:
    for step in range(50, 200):
        time.sleep(float(sys.argv[2]))
        progress.advance()
        if step % 40 == 39:
            epoch = step // 40 + 1
            record = {"epoch": epoch, "train_loss": 4.0 - epoch, "images_per_second": 812.0}
            progress.epoch(record if epoch == 3 else record | {"accuracy": epoch / 5})
print("done")
"""

CONTROL = re.compile(r"[^\n\x20-\x7e\u00a0-\U0010ffff]")


def test_control_characters_would_be_found() -> None:
    assert CONTROL.search("a\rb")
    assert CONTROL.search("\x1b[2K")
    assert not CONTROL.search("18:12 accuracy 80 % ▁▂\n")


def test_the_speed_is_of_this_attempt() -> None:
    """Another machine had 800 images/s, and a part of the second epoch."""
    workload = Workload(ONE_CYCLE, 2 * STEADY_STEPS, 256, lambda epoch, step: (0.1, 0.9))
    progress = Progress(workload, lambda: None)
    figures = {"train_loss": 1.0, "images_per_second": 800.0}
    progress.begin_at(1, 2, [figures])
    for _ in range(STEADY_STEPS + 2):
        progress.advance()
    assert "800 images/s" not in progress._figures(1, 8)
    progress.epoch(figures)
    assert "800 images/s" not in progress._figures(1, 9)
    progress.epoch(figures | {"images_per_second": 90.0})
    assert "90 images/s" in progress._figures(1, 9)


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_shows_where_the_training_is(columns: int) -> None:
    terminal = Terminal([sys.executable, "-c", TRAINING, "human", "0.02"], columns)
    terminal.read(lambda text: "cycle 1 of 2" in text and "left" in text)
    assert re.search(r"cycle 1 of 2 .*epoch 1/2 +50%", terminal.text)
    assert re.search(r"epoch 2 of 5 .*step \d+/40 +\d+%", terminal.text)
    assert re.search(r"total .*step \d+/200 +\d+%", terminal.text)
    terminal.read(lambda text: "loss 1.000" in text)
    assert re.search(r"cycle 2 of 2 .*epoch 1/3 +33%", terminal.text)
    figures = " ".join(terminal.text.split("total")[1].split())
    assert "loss 1.000 █▅▁" in figures
    assert "accuracy 40.00 % ▁█" in figures  # epochs 1 and 2; 3 was not looked at
    assert "best 40.00 %" in figures
    assert "lr 1.00e-04" in figures
    assert "812 images/s" in figures
    assert "checkpoint 23 s old" in figures
    assert re.search(r"\d+ s left", figures)
    assert len(terminal.text.split("total")[1].splitlines()) == (3 if columns == 80 else 2)
    assert max(map(len, terminal.text.splitlines())) <= columns
    assert terminal.read() == 0
    assert "━" not in terminal.text  # the display is gone, the events stay
    assert [int(epoch) for epoch in re.findall(r"epoch=(\d)", terminal.text)] == [2, 3, 4, 5]
    assert terminal.text.splitlines()[-1] == "done"
    assert not terminal.screen.cursor.hidden


def test_the_display_is_drawn_a_few_times_a_second_however_fast_the_steps() -> None:
    terminal = Terminal([sys.executable, "-c", TRAINING, "human", "0.001"], 80)
    terminal.read()
    assert len(terminal.frames) < 40  # 150 steps in less than a second


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_a_file_gets_a_line_an_epoch_and_no_control_characters(log_format: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, log_format, "0"],
        capture_output=True,
        text=True,
        check=True,
        env={"FORCE_COLOR": "1", "TERM": "xterm-256color"},
    )
    assert len(done.stderr.splitlines()) == 4
    assert not CONTROL.search(done.stderr)
    assert "━" not in done.stderr


def test_json_on_a_terminal_is_json_alone() -> None:
    terminal = Terminal([sys.executable, "-c", TRAINING, "json", "0"], 200)
    assert terminal.read() == 0
    assert len(terminal.text.splitlines()) == 5
    assert not any("━" in frame for frame in terminal.frames)


def test_the_log_of_a_demo_holds_no_control_characters(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "tiny.tar.gz", train=40, test=20, classes=5)
    recipe = ["--device", "cpu", "--depth", "10", "--width", "1", "--cycles", "1@1e-2", "--batch-size", "16"]
    where: list[str | Path] = ["--data", archive, "--cache", tmp_path, "--run", tmp_path / "run"]
    done = micronet("train", *recipe, *where)
    assert done.returncode == 0
    text = done.stderr
    assert "epoch=1" in text
    assert not CONTROL.search(text)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_the_time_left_does_not_hang_on_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(Workload(CYCLES, 40, 256, lambda epoch, step: (0.1, 0.9)), lambda: None)
    now = 60.0  # the first step takes a minute
    monkeypatch.setattr("job.progress.time.monotonic", lambda: now)
    shown = []
    for _ in range(20):
        progress.advance()
        shown.append([figure for figure in progress._figures(0, 0) if "left" in figure])
        now += 0.1
    assert shown[:STEADY_STEPS] == [[]] * STEADY_STEPS
    assert shown[-1] == ["18 s left"]  # 180 steps of 0.1 s


def test_the_place_in_the_cycles() -> None:
    workload = Workload(CYCLES, 40, 256, lambda epoch, step: (0.0, 0.0))
    first, second = "cycle 1 of 2", "cycle 2 of 2"
    parts = [(first, 0, 2), (first, 1, 2), (second, 0, 3), (second, 1, 3), (second, 2, 3)]
    assert [workload.part_of(epoch) for epoch in range(5)] == parts
    assert (workload.epochs, workload.steps) == (5, 200)
    assert Workload(ONE_CYCLE, 40, 256, workload.schedule).part_of(1) is None


def test_the_place_in_the_phases() -> None:
    phases = in_order({DENSE: (Cycle(2, 0.1), Cycle(1, 0.1)), PRUNE: (Cycle(3, 0.1),)})
    workload = Workload(phases, 40, 256, lambda epoch, step: (0.0, 0.0))
    names = [part[0] for epoch in range(6) if (part := workload.part_of(epoch))]
    assert names == [*(f"dense {n} of 3" for n in (1, 2, 3)), *(f"prune {n} of 3" for n in (1, 2, 3))]
    assert workload.epochs == 6


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 7.0], "▁█"), ([3.0], "▁"), ([2.0, 2.0], "▁▁"), ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█")],
)
def test_spark_lines(values: list[float], expected: str) -> None:
    assert spark_line(values) == expected
    assert spark_line([99.0] * 50 + values)[-len(values) :][-1] in "▁█"


def test_the_first_step_is_waited_for_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(events, "emit", lambda event, **fields: order.append(event))
    startup = Startup()
    for _ in range(3):
        startup.first_step(lambda: order.append("wait"))
    assert order == ["wait", "first_step"]
