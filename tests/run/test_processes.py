"""Several processes at one run: the same bits for every number of them, through kills, stops and hangs.

The processes find each other as torchrun's agent would have it, by variables of the environment; the agent
itself is tested in test_agent.py.
"""

import random
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from job.checks.child import Child, named
from job.store import open_store
from tests.archives import write_archive
from tests.forked import started
from tests.metadata import EC2Server
from tests.servers import free_ports

SHARDS = 4
MACHINE, PREEMPTED, CONFIGURATION = 74, 75, 78  # the README's table
STEP_TIMEOUT, BUCKET_BYTES = 3.0, 100_000
EVERYTHING = ["--cycles", "1@5e-3", "--prune-cycles", "1@1e-3", "--quantise-cycles", "1@1e-3"]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All of `train`'s options but --run."""
    folder = tmp_path_factory.mktemp("data")
    archive = write_archive(folder / "tiny.tar.gz", train=100, test=40, classes=5)
    where = ["--data", str(archive), "--cache", str(folder / "cache"), "--device", "cpu"]
    recipe = ["--depth", "10", "--width", "1", "--batch-size", "8", "--shards", str(SHARDS), *EVERYTHING]
    return [*where, *recipe, "--precision", "fp32", "--checkpoint-every", "0.1s", "--grace", "15s"]


@contextmanager
def together(
    count: int, options: Sequence[str | Path], before: str = "", port: int | None = None
) -> Iterator[list[Child]]:
    """Start `count` processes; `before` is Python code that sees its own `rank`."""
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port or free_ports(1)[0]),
        "WORLD_SIZE": str(count),
    }
    place |= {"TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo"}
    with ExitStack() as stack:
        children: list[Child] = []
        for rank in range(count):
            names = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            joined = f"import os\nrank = {rank}\nos.environ.update({names})\n{before}"
            children.append(stack.enter_context(started([str(word) for word in options], joined)))
        yield children


def codes(children: Sequence[Child]) -> list[int]:
    return [child.end() for child in children]


def finish(run: Path | str, options: Sequence[str], count: int, before: str = "") -> list[Child]:
    """Make an attempt of `count` processes that comes to the end."""
    with together(count, ["--run", run, *options], before) as children:
        assert codes(children) == [0] * count, [child.last_words() for child in children]
    return children


def weights(run: Path | str) -> bytes:
    return open_store(str(run)).get("weights.safetensors").data


@pytest.fixture(scope="module")
def reference(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that one process ends with."""
    run = tmp_path_factory.mktemp("reference")
    finish(run, options, 1)
    return weights(run)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_end_with_the_bits_of_one(
    options: list[str], reference: bytes, count: int, tmp_path: Path
) -> None:
    """Through all phases: gradients, running statistics, masks, step sizes and the teacher's answers.

    The network's 700 kB make several buckets, as a larger network's gradients do.
    """
    several = f"from job.train import exchange\nexchange.BUCKET_BYTES = {BUCKET_BYTES}"
    _, *others = finish(tmp_path, options, count, several)
    assert weights(tmp_path) == reference
    assert [each.events for each in others] == [[]] * (count - 1)  # the progress is process 0's


DENSE = ["--prune-cycles", "none", "--quantise-cycles", "none"]
BF16 = [*DENSE, "--precision", "bf16"]


def test_they_do_so_in_bf16(options: list[str], tmp_path: Path) -> None:
    for count in (1, 2, 4):
        finish(tmp_path / str(count), [*options, *BF16], count)
    assert weights(tmp_path / "1") == weights(tmp_path / "2") == weights(tmp_path / "4")


def kills(run: Path | str, options: Sequence[str], number: int, seed: int) -> int:
    """Make attempts of 1, 2 or 4 processes, kill one process of each, finish the run; return the kills."""
    chance, done = random.Random(seed), 0
    print("seed", seed)
    while done < number:
        count = chance.choice([1, 2, 4])
        with together(count, ["--run", run, *options]) as children:
            if not children[0].until(named("checkpoint")):
                break  # it was nearly finished
            time.sleep(chance.uniform(0, 0.5))
            victim = chance.choice(children)
            victim.signal(signal.SIGKILL)
            ended = codes(children)
        done += ended[children.index(victim)] == -signal.SIGKILL
        rest = {code for child, code in zip(children, ended, strict=True) if child is not victim}
        assert rest <= {MACHINE, 0}, (ended, [child.last_words() for child in children])
    finish(run, options, chance.choice([1, 2, 4]))
    return done


def test_kills_and_other_numbers_of_processes_end_with_the_same_bits(
    options: list[str], reference: bytes, tmp_path: Path
) -> None:
    assert kills(tmp_path, options, 3, random.randrange(2**32)) > 0
    assert weights(tmp_path) == reference


LONG = ["--cycles", "12@5e-3", "--prune-cycles", "12@1e-3", "--quantise-cycles", "12@1e-3"]


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "recipe"), [("s3", LONG), ("folder", [*BF16, "--cycles", "40@5e-3"])])
def test_ten_kills_end_with_the_same_bits(
    options: list[str], kind: str, recipe: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = request.getfixturevalue("s3_uri") if kind == "s3" else str(tmp_path / "killed")
    finish(tmp_path / "whole", [*options, *recipe], 1)
    assert kills(run, [*options, *recipe], 10, random.randrange(2**32)) == 10
    assert weights(run) == weights(tmp_path / "whole")


@pytest.mark.parametrize("stopped", [0, 1])
def test_sigterm_at_one_process_stops_all_after_the_same_step(
    options: list[str], reference: bytes, stopped: int, tmp_path: Path
) -> None:
    with together(2, ["--run", tmp_path, *options, "--checkpoint-every", "1h"]) as children:
        assert children[0].until(named("first_step"))
        began = time.monotonic()
        children[stopped].signal(signal.SIGTERM)
        assert codes(children) == [PREEMPTED, PREEMPTED], [child.last_words() for child in children]
        assert time.monotonic() - began < 10
    assert "durable is epoch" in children[0].last_words()
    assert "lost" not in children[0].last_words()
    finish(tmp_path, options, 1)
    assert weights(tmp_path) == reference


@pytest.mark.parametrize("hung", [0, 1])
def test_a_process_that_hangs_ends_the_others_within_twice_the_timeout(
    options: list[str], hung: int, tmp_path: Path
) -> None:
    timeout = ["--step-timeout", f"{STEP_TIMEOUT}s"]
    with together(2, ["--run", tmp_path, *options, *timeout]) as children:
        assert children[0].until(named("checkpoint"))
        children[hung].signal(signal.SIGSTOP)
        began = time.monotonic()
        assert children[1 - hung].end() == MACHINE, children[1 - hung].last_words()
        assert time.monotonic() - began < 2 * STEP_TIMEOUT + 1
        children[hung].signal(signal.SIGKILL)


def test_a_notice_for_the_machine_of_another_process_stops_all(options: list[str], tmp_path: Path) -> None:
    """Process 1 is the first of its machine, which EC2 is about to take away."""
    with ExitStack() as stack:
        ec2 = EC2Server()
        stack.callback(ec2.stop)
        there = f"if rank == 1: os.environ.update({ {'LOCAL_RANK': '0', **ec2.environment()} })"
        long = ["--cycles", "200@5e-3", "--checkpoint-every", "1h"]
        with together(2, ["--run", tmp_path, *options, *long], before=there) as children:
            assert children[0].until(named("first_step")), children[0].last_words()
            ec2.interrupt("terminate", 15)
            assert children[0].until(named("checkpoint")), children[0].last_words()  # at the notice
            assert codes(children) == [PREEMPTED, PREEMPTED], [child.last_words() for child in children]
    assert "durable is epoch" in children[0].last_words()
    assert "lost" not in children[0].last_words()


def test_unequal_machines_are_refused_before_the_first_step(options: list[str], tmp_path: Path) -> None:
    other = "if rank == 1: os.environ['MKL_CBWR'] = 'COMPATIBLE'"
    with together(2, ["--run", tmp_path, *options], before=other) as children:
        assert children[0].end() == CONFIGURATION
        assert children[1].end() == MACHINE
    assert "process 1 differs from process 0 in MKL_CBWR" in children[0].last_words()
    assert children[1].last_words() == "it logged nothing"
    assert not (tmp_path / "recipe.json").exists()


def test_a_process_that_compares_one_thing_more_is_refused(options: list[str], tmp_path: Path) -> None:
    """As that of a newer version does."""
    newer = (
        "from job.machine import device as devices\nolder = devices.machine\n"
        "if rank == 1: devices.machine = lambda device, older=older: {**older(device), 'newer': 'x'}"
    )
    with together(2, ["--run", tmp_path, *options], before=newer) as children:
        assert children[0].end() == CONFIGURATION, children[0].last_words()
        assert children[1].end() == MACHINE
    assert "process 1 differs from process 0 in newer: x, not None" in children[0].last_words()


def test_a_port_that_is_taken_is_named(options: list[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with together(2, ["--run", tmp_path, *options], port=taken.getsockname()[1]) as children:
            assert children[0].end() == CONFIGURATION
            assert f"the port {taken.getsockname()[1]}" in children[0].last_words()
