import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import pytest

from job import events
from job.machine import metadata, notices
from job.machine.notices import Notice, NoticePoller
from tests.metadata import (
    AZURE_VARIABLE,
    EC2_VARIABLE,
    GOOGLE_VARIABLE,
    AzureServer,
    EC2Server,
    GoogleServer,
    MetadataServer,
    nowhere,
)
from tests.servers import free_ports

Server = TypeVar("Server", bound=MetadataServer)
AnyServer = EC2Server | GoogleServer | AzureServer
SERVERS = [EC2Server, GoogleServer, AzureServer]
FIRST = 2.0  # seconds that the job waits for a first answer
LATER = 5.0  # seconds in which a poll every 0.05 s must have seen a change


class Play(Protocol):
    def __call__(self, kind: type[Server]) -> Server: ...


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """Start a service and point the environment at it; a proxy that refuses everything stands in the way."""
    started: list[MetadataServer] = []

    def start(kind: type[Server]) -> Server:
        server = kind()
        started.append(server)
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        return server

    [closed] = free_ports(1)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for service in notices.SERVICES:
        monkeypatch.setattr(service, "interval_seconds", 0.05)
    yield start
    for server in started:
        server.stop()


@pytest.fixture
def poller() -> Iterator[NoticePoller]:
    poller = NoticePoller()
    yield poller
    poller.stop()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LATER
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def noticed(poller: NoticePoller) -> Notice:
    """Wait until `poller` has a notice, and return it."""
    wait_until(lambda: poller.notice)
    assert poller.notice is not None
    return poller.notice


def polled(server: MetadataServer, times: int) -> None:
    """Wait until the service was asked for its notice `times` times."""
    paths = ("instance-action", "preempted", "scheduledevents")
    wait_until(lambda: sum(any(path in asked for path in paths) for asked in server.requests) >= times)


def warnings(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [
        event
        for event in map(json.loads, capsys.readouterr().err.splitlines())
        if event["event"] == "notices_unreadable"
    ]


@pytest.fixture(autouse=True)
def as_json() -> Iterator[None]:
    events.configure("json")
    yield
    events.configure()


def test_ec2_has_no_notice_until_the_interruption_and_then_its_time(play: Play, poller: NoticePoller) -> None:
    server = play(EC2Server)
    server.recommendation = True  # a rebalance recommendation is no notice
    poller.start()
    assert poller.first_answer(FIRST) is None
    polled(server, 3)
    assert poller.notice is None
    server.interrupt("terminate", 120)
    notice = noticed(poller)
    assert (notice.kind, notice.source) == ("terminate", "ec2")
    assert 118 <= notice.gone - time.monotonic() <= 120
    assert [asked for asked in server.requests if "PUT" in asked] == ["PUT /latest/api/token"]


def test_ec2_gets_a_new_token_when_the_old_one_expires(play: Play, poller: NoticePoller) -> None:
    server = play(EC2Server)
    poller.start()
    assert poller.first_answer(FIRST) is None
    server.tokens.clear()
    server.interrupt("stop", 60)
    notice = noticed(poller)
    assert notice.kind == "stop"
    assert server.requests.count("PUT /latest/api/token") == 2


def test_ec2_behind_a_bridge_logs_what_to_change(
    play: Play, poller: NoticePoller, capsys: pytest.CaptureFixture[str]
) -> None:
    server = play(EC2Server)
    server.hop_limit = 1
    poller.start()
    wait_until(lambda: not poller._thread.is_alive())
    [warning] = warnings(capsys)
    assert "HttpPutResponseHopLimit=2" in warning["reason"]
    assert poller.notice is None


def test_ec2_disabled_is_not_asked(play: Play, poller: NoticePoller, monkeypatch: pytest.MonkeyPatch) -> None:
    server = play(EC2Server)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "True")
    poller.start()
    wait_until(lambda: not poller._thread.is_alive())
    assert server.requests == []


def test_google_turns_true(play: Play, poller: NoticePoller) -> None:
    server = play(GoogleServer)
    poller.start()
    assert poller.first_answer(FIRST) is None
    polled(server, 3)
    assert poller.notice is None
    server.preempted = True
    notice = noticed(poller)
    assert (notice.kind, notice.source) == ("preempt", "gcp")
    assert 29 <= notice.gone - time.monotonic() <= 30


@pytest.mark.parametrize(("kind", "expected"), [("Preempt", "preempt"), ("Terminate", "terminate")])
def test_azures_events_for_other_machines_are_no_notice(
    play: Play, poller: NoticePoller, kind: str, expected: str
) -> None:
    server = play(AzureServer)
    server.schedule(kind, 30, machine="workers_70")
    for harmless in ("Freeze", "Reboot", "Redeploy"):
        server.schedule(harmless, 900)
    poller.start()
    assert poller.first_answer(FIRST) is None
    polled(server, 3)
    assert poller.notice is None
    server.schedule(kind, 600)
    server.schedule(kind, 300, machine="WORKERS_7")
    notice = noticed(poller)
    assert (notice.kind, notice.source) == (expected, "azure")
    assert 290 <= notice.gone - time.monotonic() <= 300  # the earlier of those it saw


def test_azure_event_that_has_started_is_due_now(play: Play, poller: NoticePoller) -> None:
    play(AzureServer).schedule("Preempt", None)
    poller.start()
    notice = poller.first_answer(FIRST)
    assert notice is not None
    assert -2 < notice.gone - time.monotonic() <= 0


@pytest.mark.parametrize("kind", SERVERS)
def test_a_notice_that_is_active_at_the_start_is_the_first_answer(
    play: Play, poller: NoticePoller, kind: type[AnyServer], capsys: pytest.CaptureFixture[str]
) -> None:
    server = play(kind)
    if isinstance(server, EC2Server):
        server.interrupt("hibernate", 0)
    elif isinstance(server, GoogleServer):
        server.preempted = True
    else:
        server.schedule("Preempt", 30)
    poller.start()
    notice = poller.first_answer(FIRST)
    assert notice is not None
    assert notice is poller.notice
    poller._thread.join(LATER)
    assert not poller._thread.is_alive()  # it has nothing more to say
    [event] = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (event["event"], event["source"], event["kind"]) == ("notice", notice.source, notice.kind)


def test_the_time_left_is_by_the_clock_of_the_service(play: Play, poller: NoticePoller) -> None:
    server = play(EC2Server)
    server.clock_offset_seconds = 1800  # this machine is half an hour late
    server.interrupt("terminate", 120)
    poller.start()
    notice = poller.first_answer(FIRST)
    assert notice is not None
    assert 117 <= notice.gone - time.monotonic() <= 121


NONSENSE = {
    "not JSON": b"<html>hello</html>",
    "not text": b"\xff\xfe\x00",
    "deep": b"[" * 60000,
    "a list": b"[]",
    "empty": b"",
    "numbers": b'{"action": 1, "time": 2, "Events": 3}',
    "no such date": b'{"action": "terminate", "time": "soon", "Events": [{"EventType": "Preempt", '
    b'"Resources": ["workers_7"], "NotBefore": "soon"}]}',
    "long ago": b'{"action": "terminate", "time": "2017-09-18T08:22:00Z", "Events": [{"EventType": "Preempt",'
    b' "Resources": ["workers_7"], "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT"}]}',
    "a null date": b'{"action": "terminate", "time": null, "Events": [{"EventType": "Terminate", '
    b'"Resources": ["workers_7"], "NotBefore": null}]}',
}


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_is_no_notice_and_is_logged_once(
    play: Play, poller: NoticePoller, kind: type[AnyServer], nonsense: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server = play(kind)
    server.nonsense = (200, NONSENSE[nonsense])
    poller.start()
    assert poller.first_answer(FIRST) is None
    polled(server, 3)
    [warning] = warnings(capsys)
    assert warning["source"] in ("ec2", "gcp", "azure")
    assert poller._thread.is_alive()


def test_an_answer_without_end_is_not_read_to_the_end(
    play: Play, poller: NoticePoller, capsys: pytest.CaptureFixture[str]
) -> None:
    server = play(EC2Server)
    server.interrupt("terminate", 120)
    assert server.action is not None
    server.action["padding"] = "x" * 70000
    poller.start()
    assert poller.first_answer(FIRST) is None
    [warning] = warnings(capsys)
    assert "more than 65536 bytes" in warning["reason"]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_service_that_fails_for_a_while_is_retried(
    play: Play, poller: NoticePoller, kind: type[AnyServer], capsys: pytest.CaptureFixture[str]
) -> None:
    server = play(kind)
    server.nonsense = (503, b"busy")
    poller.start()
    polled(server, 2)
    if isinstance(server, EC2Server):
        server.interrupt("terminate", 120)
    elif isinstance(server, GoogleServer):
        server.preempted = True
    else:
        server.schedule("Preempt", 30)
    server.nonsense = None
    wait_until(lambda: poller.notice)
    [warning] = warnings(capsys)
    assert "503" in warning["reason"]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_slow_service_is_waited_for_by_its_thread_alone(
    play: Play, poller: NoticePoller, kind: type[AnyServer]
) -> None:
    server = play(kind)
    server.delay_seconds = 0.4
    if isinstance(server, EC2Server):
        server.interrupt("terminate", 120)
    elif isinstance(server, GoogleServer):
        server.preempted = True
    else:
        server.schedule("Preempt", 30)
    started = time.monotonic()
    poller.start()
    assert poller.first_answer(0.1) is None
    assert time.monotonic() - started < 0.7  # two answers take 0.8 s
    wait_until(lambda: poller.notice)


def test_a_service_that_hangs_holds_the_job_for_the_given_time_only(
    play: Play, poller: NoticePoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = play(EC2Server)
    server.delay_seconds = 60
    monkeypatch.setenv(GOOGLE_VARIABLE, server.address)
    monkeypatch.setenv(AZURE_VARIABLE, f"http://{server.address}")
    started = time.monotonic()
    poller.start()
    assert poller.first_answer(0.3) is None
    assert 0.25 <= time.monotonic() - started < 2  # its probes take 4 s
    wait_until(lambda: len(server.requests) >= 2)  # its own time-outs have let it go on


def test_no_service_costs_nothing(
    poller: NoticePoller, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in nowhere().items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    poller.start()
    assert poller.first_answer(FIRST) is None
    assert time.monotonic() - started < 0.9  # a single time-out is 1 s
    poller._thread.join(1)
    assert not poller._thread.is_alive()
    assert capsys.readouterr().err == ""


def test_an_address_shared_by_the_three_is_tried_once(
    poller: NoticePoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full backlog accepts no more connections: what a network that drops packets looks like."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    address = listener.getsockname()
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(address)
    monkeypatch.setattr(notices, "PROBE_SECONDS", 0.4)
    monkeypatch.setattr(notices, "LINK_LOCAL", f"http://127.0.0.1:{address[1]}")
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    for name in (EC2_VARIABLE, GOOGLE_VARIABLE, AZURE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    poller.start()
    assert poller.first_answer(5) is None
    assert 0.3 < time.monotonic() - started < 1.1  # three times 0.4 s would be 1.2 s
    for one in (listener, *fillers):
        one.close()


@pytest.mark.parametrize(
    "endpoint", ["https://127.0.0.1", "127.0.0.1:80", "http://127.0.0.1:port", "http://"]
)
def test_an_invalid_endpoint_is_logged(
    poller: NoticePoller, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: str
) -> None:
    for name, value in nowhere().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(EC2_VARIABLE, endpoint)
    poller.start()
    poller._thread.join(LATER)
    [warning] = warnings(capsys)
    assert endpoint in warning["reason"]


def test_it_ends_when_stopped(play: Play, poller: NoticePoller) -> None:
    server = play(GoogleServer)
    poller.start()
    polled(server, 1)
    poller.stop()
    poller._thread.join(LATER)
    assert not poller._thread.is_alive()


def test_redirects_are_not_followed(play: Play) -> None:
    server = play(GoogleServer)
    server.nonsense = (302, b"")
    with pytest.raises(metadata.UnreadableError, match="302"):
        notices.Google().notice()
