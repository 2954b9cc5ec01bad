"""Real processes, stopped by real signals."""

import itertools
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROMPT = 5.0  # seconds; what is interrupted would take 60

FRAME = """
import os, signal, sys, time
from job.errors import JobError, PreemptedError
from job.machine.preemption import Preemption

preemption = Preemption(GRACE)

def say(*words):
    print(*words, flush=True)

try:
    with preemption.installed():
{body}
except (JobError, PreemptedError) as error:
    say("caught:", error)
{handler}
    sys.exit(error.exit_code)
{afterwards}
say("end")
"""


class Script:
    """A process around `body`, which runs with the handlers installed; `say` in it is `line` here."""

    def __init__(
        self,
        body: str,
        handler: str = "",
        afterwards: str = "",
        grace: float = 20,
        command: tuple[str, ...] = (),
    ) -> None:
        text = FRAME.replace("GRACE", str(grace)).format(
            body=textwrap.indent(textwrap.dedent(body).strip(), " " * 8),
            handler=textwrap.indent(textwrap.dedent(handler).strip() or "pass", " " * 4),
            afterwards=textwrap.dedent(afterwards).strip(),
        )
        self.process = subprocess.Popen(
            [*command, sys.executable, "-c", text],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().rstrip("\n")

    def kill(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, list[str], str]:
        """Return exit code, the rest of what it said, and stderr."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out.splitlines(), err


Start = Callable[..., Script]


@pytest.fixture
def script() -> Iterator[Start]:
    scripts: list[Script] = []

    def start(*arguments: Any, **options: Any) -> Script:
        scripts.append(Script(*arguments, **options))
        return scripts[-1]

    yield start
    for one in scripts:
        one.process.kill()
        one.process.communicate()


WAITS = {
    "sleep": "time.sleep(60)",
    "busy loop": "while True: pass",
    "lock": "import threading; threading.Event().wait()",
    "join": "import threading as t; w = t.Thread(target=t.Event().wait, daemon=True); w.start(); w.join()",
    "socket": "import socket; a, b = socket.socketpair(); a.recv(1)",
    "child": "try: child.wait()\nfinally: child.kill()",
}


@pytest.mark.parametrize(
    ("wait", "name"), [*itertools.product(WAITS, ["SIGTERM", "SIGINT"]), ("sleep", "SIGHUP")]
)
def test_a_signal_is_raised_at_once(script: Start, wait: str, name: str) -> None:
    one = script(
        "import subprocess\n"
        "child = subprocess.Popen(['cat'], stdin=subprocess.PIPE)\n"  # ends with this process at the latest
        f"say('ready')\n{WAITS[wait]}"
    )
    assert one.line() == "ready"
    started = time.monotonic()
    one.kill(getattr(signal, name))
    code, said, _ = one.end()
    assert time.monotonic() - started < PROMPT
    assert code == 75
    assert said == [f"caught: stopped by {name}. Run the same command again"]


@pytest.mark.parametrize("wait", ["sleep", "lock", "join", "socket"])
def test_a_signal_that_does_not_interrupt_the_main_thread_is_raised_too(script: Start, wait: str) -> None:
    one = script(
        "import signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"  # so another thread gets it
        f"say('ready')\n{WAITS[wait]}"
    )
    assert one.line() == "ready"
    started = time.monotonic()
    one.kill()
    code, said, _ = one.end()
    assert time.monotonic() - started < PROMPT
    assert (code, said) == (75, ["caught: stopped by SIGTERM. Run the same command again"])


def test_code_that_catches_every_exception_does_not_swallow_it(script: Start) -> None:
    one = script("""
        while True:
            try:
                say("ready")
                time.sleep(60)
            except Exception:
                say("swallowed")
    """)
    assert one.line() == "ready"
    one.kill()
    code, said, _ = one.end()
    assert (code, said) == (75, ["caught: stopped by SIGTERM. Run the same command again"])


def test_botocore_does_not_make_a_connection_error_of_it(script: Start) -> None:
    one = script("""
        import socket
        import boto3
        listener = socket.create_server(("127.0.0.1", 0))
        client = boto3.client(
            "s3", endpoint_url="http://127.0.0.1:%d" % listener.getsockname()[1], region_name="x",
            aws_access_key_id="a", aws_secret_access_key="b")
        import threading
        def serve():
            connection, _ = listener.accept()
            connection.recv(1)
            say("ready")
            time.sleep(60)
        threading.Thread(target=serve, daemon=True).start()
        client.get_object(Bucket="bucket", Key="key")
    """)
    assert one.line() == "ready"
    time.sleep(0.1)
    one.kill()
    code, said, _ = one.end()
    assert (code, said) == (75, ["caught: stopped by SIGTERM. Run the same command again"])


def test_a_raise_that_was_swallowed_is_made_good_by_check(script: Start) -> None:
    one = script("""
        try:
            say("ready")
            time.sleep(60)
        except:
            say("swallowed")
        preemption.check()
    """)
    assert one.line() == "ready"
    one.kill()
    code, said, _ = one.end()
    assert (code, said) == (75, ["swallowed", "caught: stopped by SIGTERM. Run the same command again"])


def test_a_deferred_block_is_finished(script: Start) -> None:
    one = script("""
        with preemption.deferred():
            with preemption.deferred():
                say("ready")
                while not preemption.requested:
                    time.sleep(0.01)
                say("inner")
            say("outer")
        say("not reached")
    """)
    assert one.line() == "ready"
    one.kill()
    code, said, _ = one.end()
    assert code == 75
    assert said == ["inner", "outer", "caught: stopped by SIGTERM. Run the same command again"]


def test_check_raises_in_a_deferred_block(script: Start) -> None:
    one = script("""
        with preemption.deferred():
            say("ready")
            for step in range(10000):
                time.sleep(0.01)
                preemption.check()
    """)
    assert one.line() == "ready"
    one.kill()
    code, said, _ = one.end()
    assert (code, said) == (75, ["caught: stopped by SIGTERM. Run the same command again"])


def test_an_error_of_the_deferred_block_is_not_hidden(script: Start) -> None:
    one = script("""
        from job.errors import MachineError
        with preemption.deferred():
            say("ready")
            while not preemption.requested:
                time.sleep(0.01)
            raise MachineError("the GPU is gone")
    """)
    assert one.line() == "ready"
    one.kill()
    code, said, _ = one.end()
    assert (code, said) == (74, ["caught: the GPU is gone"])


def test_no_signal_and_no_deferral_tears_the_last_save(script: Start) -> None:
    one = script("""
        try:
            say("ready")
            time.sleep(60)
        except PreemptedError:
            with preemption.deferred():
                say("saving", preemption.requested)
            for word in ("a", "b"):
                signal.raise_signal(signal.SIGINT)  # within half a second: the same request
                say(word)
            raise
    """)
    assert one.line() == "ready"
    one.kill()
    code, said, err = one.end()
    assert (code, err) == (75, "")
    assert said == ["saving True", "a", "b", "caught: stopped by SIGTERM. Run the same command again"]


@pytest.mark.parametrize("first", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT"])
def test_a_second_signal_stops_at_once(script: Start, first: str, second: str) -> None:
    one = script(
        "say('ready')\ntime.sleep(60)",
        handler="""
        say("saving")
        with preemption.deferred():
            time.sleep(60)
        """,
    )
    assert one.line() == "ready"
    one.kill(getattr(signal, first))
    assert one.line().startswith("caught")
    assert one.line() == "saving"
    time.sleep(0.6)
    started = time.monotonic()
    one.kill(getattr(signal, second))
    code, said, err = one.end()
    assert time.monotonic() - started < PROMPT
    assert (code, said) == (75, [])
    assert err == f"micronet: {second} again: stopped at once (exit code 75)\n"


def test_a_slow_import_is_finished_and_nothing_in_it_swallows_the_signal(
    script: Start, tmp_path: Path
) -> None:
    """What `import torch` may hold: a handler for anything, and a module that is half there if torn."""
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "print('importing', flush=True)\n"
        "try:\n"
        "    end = time.monotonic() + 0.5\n"
        "    while time.monotonic() < end: time.sleep(0.01)\n"
        "except:\n"
        "    print('torn', flush=True)\n"
        "print('imported', flush=True)\n"
    )
    one = script(f"""
        sys.path.insert(0, {str(tmp_path)!r})
        with preemption.deferred():
            import slow
        say("not reached")
    """)
    assert one.line() == "importing"
    one.kill()
    code, said, _ = one.end()
    assert (code, said) == (75, ["imported", "caught: stopped by SIGTERM. Run the same command again"])


def test_it_imports_nothing_heavy() -> None:
    """The handler must stand before torch, structlog and click are loaded."""
    program = "import sys, job.machine.preemption; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True).split()
    assert not {"torch", "structlog", "click", "threading", "http", "logging"} & set(loaded)


def test_the_grace_bounds_everything(script: Start) -> None:
    """A save that takes longer than the grace, in code that swallows: gone in time, with 75."""
    one = script(
        "say('ready')\ntime.sleep(60)",
        handler="""
        say(f"{preemption.remaining():.1f} {preemption.deadline - time.monotonic():.1f}")
        while True:
            try:
                time.sleep(60)
            except:
                say("never")
        """,
        grace=2,
    )
    assert one.line() == "ready"
    started = time.monotonic()
    one.kill()
    code, said, err = one.end()
    assert 1.8 < time.monotonic() - started < 4  # at 1.9: a tenth is kept back, half of it to say and leave
    assert code == 75
    remaining, to_deadline = map(float, said[1].split())
    assert 1.3 < remaining <= 1.8
    assert to_deadline == pytest.approx(remaining, abs=0.11)
    assert len(said) == 2
    assert err == "micronet: the grace of 2 s is over: stopped with what is durable (exit code 75)\n"


NATIVE = """
import ctypes
mutex, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
library.pthread_mutex_lock(mutex)
with preemption.deferred():
    say("ready")
    library.pthread_mutex_lock(mutex)  # for ever, as a call of a hung driver
"""


def test_the_grace_ends_a_main_thread_that_is_stuck_in_native_code(script: Start) -> None:
    one = script(NATIVE, grace=2)
    assert one.line() == "ready"
    one.kill()
    code, said, err = one.end()
    assert (code, said) == (75, [])
    assert err == "micronet: the grace of 2 s is over: stopped with what is durable (exit code 75)\n"


def test_a_second_signal_ends_a_main_thread_that_is_stuck_in_native_code(script: Start) -> None:
    one = script(NATIVE, grace=60)
    assert one.line() == "ready"
    one.kill()
    time.sleep(0.6)
    one.kill()
    code, _, err = one.end()
    assert code == 75
    assert err == "micronet: SIGTERM again: stopped at once (exit code 75)\n"


def test_a_notice_leaves_time_to_train_and_then_to_save(script: Start) -> None:
    one = script("""
        say(preemption.deadline, preemption.remaining())
        preemption.check(1000)
        started = time.monotonic()
        preemption.expect(started + 3)
        preemption.expect(started + 9)   # a later time changes nothing
        say(preemption.remaining(), preemption.requested)
        while True:
            time.sleep(0.01)
            spent = time.monotonic() - started
            try:
                preemption.check(save_seconds=1.5)
            except PreemptedError:
                say(f"{spent:.1f}", preemption.requested)
                raise
    """)
    assert one.line() == "None inf"
    remaining, requested = one.line().split()
    assert 1.5 < float(remaining) <= 2.0  # of 20 s of grace, 1 s is kept back
    assert requested == "False"
    code, said, _ = one.end()
    assert code == 75
    spent, requested = said[0].split()
    assert 0.5 <= float(spent) < 2.0  # at 3 - 1 - 1.5
    assert requested == "True"
    assert said[1:] == ["caught: the machine is about to be taken away. Run the same command again"]


def test_the_signal_that_follows_a_notice_does_not_tear_the_save(script: Start) -> None:
    one = script(
        """
        preemption.expect(time.monotonic() + 6)
        preemption.check(save_seconds=10)
        """,
        handler="""
        say("saving", preemption.remaining())
        while preemption._signalled is None:
            time.sleep(0.01)
        say("saved", preemption.remaining())
        """,
        grace=3,
    )
    assert one.line().startswith("caught: the machine")
    assert 4.5 < float(one.line().removeprefix("saving ")) <= 5.7
    one.kill()
    code, said, err = one.end()
    assert (code, err) == (75, "")
    assert 2.2 < float(said[0].removeprefix("saved ")) <= 2.7


def test_a_signal_after_the_notice_s_time_has_its_own_grace(script: Start) -> None:
    one = script(
        "preemption.expect(time.monotonic() - 5)\npreemption.check()",
        handler="""
        say("saving", preemption.remaining())
        while preemption._signalled is None:
            time.sleep(0.01)
        say("saved", preemption.remaining())
        """,
        grace=10,
    )
    assert one.line().startswith("caught: the machine")
    assert one.line() == "saving 0.0"
    one.kill()
    code, said, _ = one.end()
    assert code == 75
    assert 8 < float(said[0].removeprefix("saved ")) <= 9


def test_once_the_exit_code_is_decided_a_signal_changes_nothing(script: Start) -> None:
    one = script(
        "say('done')",
        afterwards="""
        say("ready")
        while not preemption.requested:
            time.sleep(0.01)
        """,
    )
    assert (one.line(), one.line()) == ("done", "ready")
    one.kill()
    assert one.end() == (0, ["end"], "")


def test_forked_children_die_of_a_signal_as_before(script: Start) -> None:
    one = script("""
        child = os.fork()
        if child == 0:
            say("child")
            time.sleep(60)
            os._exit(3)
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        say(os.WTERMSIG(os.waitpid(child, 0)[1]), preemption.requested)
    """)
    code, said, _ = one.end()
    assert (code, said) == (0, ["child", "15 False", "end"])


def test_worker_processes_die_of_a_signal_as_before(script: Start) -> None:
    one = script("""
        import multiprocessing
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        time.sleep(0.1)
        worker.terminate()
        worker.join()
        say(worker.exitcode, preemption.requested)
    """)
    code, said, err = one.end()
    assert (code, said, err) == (0, ["-15 False", "end"], "")


def test_started_programs_have_the_default_handlers(script: Start) -> None:
    one = script("""
        import subprocess
        program = "import signal as s; print(s.getsignal(s.SIGTERM), s.getitimer(s.ITIMER_REAL))"
        say(subprocess.check_output([sys.executable, "-c", program], text=True).strip())
    """)
    assert one.line() == "0 (0.0, 0.0)"


@pytest.mark.parametrize("name", ["INT", "HUP"])
def test_signals_stay_ignored_in_the_background(script: Start, name: str) -> None:
    """`micronet train &` in a script: the terminal's Ctrl-C is for somebody else; `nohup micronet train`."""
    one = script("say('ready')\ntime.sleep(60)", command=("sh", "-c", f'trap "" {name}; exec "$@"', "sh"))
    assert one.line() == "ready"
    one.kill(getattr(signal, f"SIG{name}"))
    time.sleep(0.2)
    assert one.process.poll() is None
    one.kill(signal.SIGTERM)
    assert one.end()[0] == 75


def test_any_instant_after_the_installation_gives_75(script: Start) -> None:
    """Signals spread over deferred steps, plain code and the last save; none is lost or raised twice."""
    body = """
        say("ready")
        while True:
            for step in range(50):
                with preemption.deferred():
                    sum(range(2000))
            preemption.check()
            sum(range(20000))
    """
    handler = "with preemption.deferred(): say('saved', sum(range(100000)))"
    for pause in (0, 0.003, 0.007, 0.013, 0.029, 0.05):
        one = script(body, handler=handler)
        assert one.line() == "ready"
        time.sleep(pause)
        one.kill()
        code, said, err = one.end()
        assert code == 75, err
        assert len(said) == 2, said
        assert re.fullmatch(r"saved \d+", said[1])
        assert err == ""
