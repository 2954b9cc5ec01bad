"""The processes that train one network together, one a GPU: torchrun starts them, torch.distributed links."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from job import events
from job.errors import ConfigurationError, MachineError, PreemptedError
from job.machine.launch import require_divisible, under_torchrun
from job.machine.preemption import Preemption

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NO_TIMEOUT = timedelta(days=30)
LIVENESS_KEY, BEAT_SECONDS, POLL_SECONDS = "beats", 1.0, 0.02

Result = TypeVar("Result")


class PeerLostError(MachineError):
    """Another process has ended, which logs its own reason, or does not answer."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"another process has ended or does not answer ({reason})", "Run the same command again"
        )
        self.quiet = events.process() > 0  # all of them notice


class Links:
    """The process groups besides NCCL's.

    `step_group` fails after the step timeout; `waiting_group` waits for process 0 as long as its liveness
    counter moves.
    """

    def __init__(self, store: Any, timeout: timedelta) -> None:
        from torch.distributed import PrefixStore, new_group  # type: ignore[attr-defined]

        self.step_group: Any = new_group(backend="gloo", timeout=timeout)
        self.waiting_group: Any = new_group(backend="gloo", timeout=NO_TIMEOUT)
        self.liveness_store: Any = PrefixStore("pulse", store)
        self.timeout_seconds = timeout.total_seconds()


class Group:
    """The processes, and this one's place among them: `rank`, from 0, of `count`. Alone, nothing is sent."""

    def __init__(self, rank: int = 0, count: int = 1, links: Links | None = None) -> None:
        self.rank, self.count = rank, count
        self._links = links
        self._sent: tuple[Tensor, Any] | None = None
        self._checked = math.inf  # when the last step ended

    @classmethod
    def join(cls, device: torch.device, step_timeout: float) -> Group:
        """Meet the processes that torchrun has started; alone without it.

        `step_timeout` seconds, 0 for no limit, is how long a process waits for another that does not answer.
        Raises PeerLostError where they do not come.
        """
        if not under_torchrun() or os.environ["WORLD_SIZE"] == "1":
            return cls()
        from torch.distributed import init_process_group, rendezvous  # type: ignore[attr-defined]

        timeout = timedelta(seconds=step_timeout) if step_timeout else NO_TIMEOUT
        on_gpu = device.type == "cuda"
        with _explained():
            store, rank, count = next(rendezvous("env://", timeout=timeout))
            init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                store=store,
                rank=rank,
                world_size=count,
                timeout=2 * timeout if on_gpu else timeout,  # NCCL's aborts the process: it comes last
                device_id=device if on_gpu else None,
            )
            group = cls(rank, count, Links(store, timeout))
        events.name_process(rank)
        if group.first:
            threading.Thread(target=group._beat, name="pulse", daemon=True).start()
        return group

    @property
    def first(self) -> bool:
        """Return whether this is process 0, which alone uses the run's store, evaluates and reports."""
        return self.rank == 0

    def own(self, shards: int) -> range:
        """Return this process's shards of a step; ConfigurationError where they cannot be divided equally."""
        require_divisible(shards, self.count)
        each = shards // self.count
        return range(self.rank * each, (self.rank + 1) * each)

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """Do the work in process 0 and then in the others, such as what fills a cache."""
        if self.first:
            result = work()
            self.wait()
            return result
        self.wait()
        return work()

    def require_same(self, mine: Mapping[str, str | None]) -> None:
        """Raise ConfigurationError in process 0 for a process that has other values than that."""
        if self.count == 1:
            return
        from torch import distributed

        texts = [""] * self.count
        with _explained():
            distributed.all_gather_object(texts, json.dumps(mine), group=self._reach.waiting_group)
        for rank, text in enumerate(texts if self.first else ()):
            theirs = json.loads(text)
            for name in {**mine, **theirs}:
                if theirs.get(name) != mine.get(name):
                    raise ConfigurationError(
                        f"process {rank} differs from process 0 in {name}: {theirs.get(name)}, not "
                        f"{mine.get(name)}",
                        "Use equal GPUs and machines, the same code and the same options",
                    )

    def share(self, data: bytes = b"") -> bytes:
        """Return what process 0 gives, in all; the others wait for it as long as it is alive."""
        if self.count == 1:
            return data
        import torch

        size = torch.tensor([len(data)])
        self._broadcast(size)
        content = torch.frombuffer(bytearray(data or b"-" * int(size)), dtype=torch.uint8)
        self._broadcast(content)
        return content.numpy().tobytes()

    def wait(self) -> None:
        """Let the others wait until process 0 is here."""
        self.share(b"-")

    @contextmanager
    def outliving_first(self) -> Iterator[None]:
        """Delay a PreemptedError of the block until process 0 has ended.

        torchrun's agent kills all processes when one ends.
        """
        try:
            yield
        except PreemptedError:
            with suppress(PeerLostError):
                self.share()
            raise

    def longer(self, step_timeout: float) -> float:
        """Return the limit of a step for the watchdog: with others, after these should have been missed."""
        return step_timeout * (2 if self.count > 1 else 1)

    def check(self, preemption: Preemption, save_seconds: float = 0.0) -> None:
        """Do `Preemption.check` for all processes: each stops after the same step if one has to.

        What a process knows reaches the others with the next call, so that no step waits for it.
        """
        if self.count == 1:
            preemption.check(save_seconds)
            return
        now = time.monotonic()
        one_step, self._checked = max(0.0, now - self._checked), now
        due = preemption.requested or preemption.remaining() <= save_seconds + one_step
        left = self._least(0.0 if due else preemption.gone - now)
        if left <= 0:
            preemption.request("another process was asked to stop")
            preemption.check()
        if math.isfinite(left):
            preemption.expect(time.monotonic() + left)

    @property
    def _reach(self) -> Links:
        assert self._links
        return self._links

    def _least(self, value: float) -> float:
        """Return the least value that was given at the call before; infinity at the first."""
        import torch
        from torch import distributed

        before, given = self._sent, torch.tensor([value])
        with _explained():
            work = distributed.all_reduce(
                given, distributed.ReduceOp.MIN, self._reach.step_group, async_op=True
            )
            self._sent = given, work
            if before is None:
                return math.inf
            before[1].wait()
        return before[0].item()

    def _broadcast(self, content: Tensor) -> None:
        """Copy `content` from process 0 to all; PeerLostError when that has not lived for the timeout."""
        from torch import distributed

        with _explained():
            work: Any = distributed.broadcast(content, 0, self._reach.waiting_group, async_op=True)
            beats, seen = 0, time.monotonic()
            while not (self.first or work.is_completed()):
                time.sleep(POLL_SECONDS)
                now = self._beats()
                if now != beats:
                    beats, seen = now, time.monotonic()
                elif time.monotonic() - seen > self._reach.timeout_seconds:
                    raise PeerLostError(f"no sign of process 0 for {self._reach.timeout_seconds:g} s")
            work.wait()

    def _beats(self) -> int:
        """Return how often process 0 has shown that it is alive; 0 once the store that counts it is gone.

        The store ends with the agent. Process 0 is stopped then too, and needs the others until it has saved.
        """
        if self._reach.liveness_store is not None:
            try:
                return int(self._reach.liveness_store.add(LIVENESS_KEY, 0))
            except RuntimeError:
                self._reach.liveness_store = None
        return 0

    def _beat(self) -> None:
        """Show that this process is alive, until the store that shows it is gone."""
        with suppress(RuntimeError):
            while True:
                self._reach.liveness_store.add(LIVENESS_KEY, 1)
                time.sleep(BEAT_SECONDS)

    def all_to_all(self, received: Tensor, sent: Tensor) -> Work:
        """Begin to send each process its slice of `sent`, and to receive its slice of theirs."""
        from torch import distributed

        with _explained():
            return Work(distributed.all_to_all_single(received, sent, async_op=True))

    def all_gather(self, received: Tensor, sent: Tensor) -> Work:
        """Begin to put the slices of all processes one after another."""
        from torch import distributed

        with _explained():
            return Work(distributed.all_gather_single(received, sent, async_op=True))


ALONE = Group()


class Work:
    """A transfer that has begun."""

    def __init__(self, work: Any) -> None:
        self.work = work

    def wait(self) -> None:
        """Wait for it: on a GPU the stream waits, not the host."""
        with _explained():
            self.work.wait()


@contextmanager
def _explained() -> Iterator[None]:
    """Raise PeerLostError for what torch.distributed raises, by which it means that a process is gone."""
    try:
        yield
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            raise ConfigurationError(
                f"the port {os.environ.get('MASTER_PORT')} at which the processes meet is taken",
                "Give torchrun another --master-port or --rdzv-endpoint",
            ) from error
        raise PeerLostError(str(error).strip().partition("\n")[0]) from error
