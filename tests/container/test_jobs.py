"""Jobs in containers of the image: to the end, preempted, killed, and refused."""

import json
import os
import time
from pathlib import Path

import pytest

from job.checks.laboratory import Result, differences
from job.run.claims import latest
from job.store import Store, open_store
from tests.container.engine import HARDENED, Container, Engine
from tests.container.image import Image
from tests.metadata import nowhere
from tests.servers import SeaweedFS

pytestmark = [pytest.mark.container, pytest.mark.timeout(1800)]

SMALL = ("train", "--demo", "--depth=10", "--cycles=2@2e-2", "--checkpoint-every=2s")
JOB = (*HARDENED, "--env=OMP_NUM_THREADS=1")  # where cores are shared, two threads mostly wait
GRACE_SECONDS = 30
START_SECONDS = 120

Place = tuple[int, int]


@pytest.fixture(scope="module")
def data(engine: Engine, image: Image, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The option that mounts the generated data set."""
    option = volume(tmp_path_factory.mktemp("data"), "/data")
    engine.run(image.tag, "data", "--demo", options=[*JOB, option]).expect(0)
    return option


@pytest.fixture(scope="module")
def undisturbed(engine: Engine, image: Image, data: str, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What the small run leaves that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    options = [*JOB, data, volume(folder, "/runs")]
    engine.run(image.tag, *SMALL, "--run=/runs/undisturbed", options=options).expect(0)
    return Result.read(open_store(str(folder / "undisturbed")))


def volume(folder: Path, point: str) -> str:
    """Return the option that mounts `folder` for any user."""
    folder.chmod(0o777)
    return f"--volume={folder}:{point}"


def wait_for_progress(container: Container, store: Store, beyond: Place = (0, 0)) -> Place:
    """Return the place (epoch, step) of the first checkpoint that is beyond another one."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert container.running, container.done()
        assert time.monotonic() < deadline
        manifest = latest(store)
        if manifest is not None and (manifest.epoch, manifest.step) > beyond:
            return manifest.epoch, manifest.step
        time.sleep(0.1)


def test_demo_with_no_network_no_privilege_and_nothing_else_to_write_to(
    engine: Engine, image: Image, tmp_path: Path
) -> None:
    options = [*JOB, "--network=none", volume(tmp_path, "/runs")]
    done = engine.run(image.tag, "train", "--demo", options=options).expect(0)
    assert "nothing is mounted" not in done.err
    (run,) = tmp_path.iterdir()
    report = json.loads((run / "report.json").read_text())
    assert report["accuracy"]["final"] > 0.9
    assert report["environment"]["git"] == image.revision
    assert report["environment"]["image"] == image.tag
    assert (run / "report.json").stat().st_uid == 54321


def test_a_compiled_run_keeps_its_machine_code_beside_the_data(
    engine: Engine, image: Image, data: str, tmp_path: Path
) -> None:
    options = [*JOB, "--network=none", data, volume(tmp_path, "/runs")]
    words = ("--compile", "--cycles=1@2e-2", "--run=/runs/compiled")
    engine.run(image.tag, *SMALL, *words, options=options).expect(0)
    assert (tmp_path / "compiled" / "report.json").exists()
    cache = Path(data.removeprefix("--volume=").rpartition(":")[0]) / "compiled"
    assert list(cache.rglob("*.so"))
    assert not list((tmp_path / "compiled").rglob("*.so"))


def test_stopped_in_mid_training_it_goes_on_to_the_same_bits(
    engine: Engine, image: Image, data: str, undisturbed: Result, tmp_path: Path
) -> None:
    options = [*JOB, data, volume(tmp_path, "/runs")]
    command = (*SMALL, "--run=/runs/stopped")
    store = open_store(str(tmp_path / "stopped"))
    container = engine.start(image.tag, *command, options=options)
    wait_for_progress(container, store)
    assert "SIGTERM" in container.stop(GRACE_SECONDS).expect(75).err

    engine.run(image.tag, *command, options=options).expect(0)
    result = Result.read(store)
    assert differences(undisturbed, result) == []
    assert [attempt.reason for attempt in result.report.lineage.attempts] == [
        "preempted",
        "finished",
    ]


def test_killed_and_stopped_on_object_storage_it_goes_on_to_the_same_bits(
    engine: Engine, image: Image, data: str, undisturbed: Result, seaweedfs: SeaweedFS, s3_uri: str
) -> None:
    variables = {**nowhere(), **seaweedfs.environment()}
    options = [*JOB, data, "--network=host"]
    options += [f"--env={name}={value}" for name, value in variables.items()]
    command, store = (*SMALL, f"--run={s3_uri}"), open_store(s3_uri)

    container = engine.start(image.tag, *command, options=options)
    place = wait_for_progress(container, store)
    container.kill().expect(137)
    container = engine.start(image.tag, *command, options=options)
    wait_for_progress(container, store, beyond=place)
    container.stop(GRACE_SECONDS).expect(75)
    engine.run(image.tag, *command, options=options).expect(0)

    result = Result.read(store)
    assert differences(undisturbed, result) == []
    reasons = [attempt.reason for attempt in result.report.lineage.attempts]
    assert reasons == ["vanished", "preempted", "finished"]


def test_without_a_gpu_training_is_refused_with_the_three_causes(
    engine: Engine, image: Image, data: str
) -> None:
    refused = engine.run(image.tag, "train", options=[*JOB, data]).expect(78)
    assert "--gpus all" in refused.err
    assert "toolkit" in refused.err
    assert "driver" in refused.err


def test_says_when_the_run_would_be_gone_with_the_container(engine: Engine, image: Image) -> None:
    options = [*JOB]
    warning = "nothing is mounted at /runs"
    assert warning in engine.run(image.tag, "train", options=options).expect(78).err
    for elsewhere in (["--run", "s3://bucket/run"], ["--run=/tmp/run"]):
        assert warning not in engine.run(image.tag, "train", *elsewhere, options=options).expect(78).err
    options.append("--env=MICRONET_RUN=/tmp/run")
    assert warning not in engine.run(image.tag, "train", options=options).expect(78).err


def test_exit_codes_come_through(engine: Engine, image: Image, data: str, tmp_path: Path) -> None:
    (tmp_path / "broken.tar.gz").write_bytes(os.urandom(1000))
    (tmp_path / "runs").mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    options = [*JOB, data, f"--volume={tmp_path}:/given", f"--volume={tmp_path}/runs:/runs"]
    engine.run(image.tag, "trian", options=options).expect(2)
    broken = (
        "train",
        "--device=cpu",
        "--run=/tmp/run",
        "--data=/given/broken.tar.gz#sha256=" + "0" * 64,
        "--cache=/tmp/cache",
    )
    engine.run(image.tag, *broken, options=options).expect(65)
    engine.run(image.tag, *SMALL, options=options).expect(77)  # /runs belongs to another user


def test_a_stop_before_anything_began_is_no_failure(engine: Engine, image: Image, data: str) -> None:
    container = engine.start(image.tag, *SMALL, options=[*JOB, data])
    assert container.stop(1).code in (75, 137)
