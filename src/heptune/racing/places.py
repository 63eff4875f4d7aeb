"""Where a race's pieces are computed: here, in processes of their own, or on a Ray cluster.

Each place takes calls and gives futures. What a piece does is seen in its run directory, so that a place needs no way
back but the result.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from pickle import PicklingError
from queue import SimpleQueue
from typing import Any, Protocol

from heptune.core.errors import HeptuneError, UsageError


class Lost(HeptuneError):
    """The process that computed a piece has died."""


class Place(Protocol):
    """Computes calls, at most `width` at a time."""

    width: int

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begins a call, or lets it wait for its turn. Its future raises `Lost` where the process died."""

    def stop(self) -> None:
        """Asks what runs to save and come back; its futures end soon. What waits is cancelled by its future."""

    def close(self) -> None:
        """Ends what still runs."""


class Here:
    """One call after the other, in this process."""

    width = 1

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Computes the call before it returns."""
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def stop(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing runs."""


class Processes:
    """Processes on one machine, each with its share of the threads. They end with this one, however it ends.

    Each has one call at a time, so that the death of one loses that call and no other."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        self._workers: set[_Worker] = set()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(width)]

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Hands the call to the next process that is free."""
        future: Future[Any] = Future()
        self._waiting.put((future, call, arguments))
        for thread in self._threads:
            if thread.ident is None:
                thread.start()
        return future

    def _serve(self) -> None:
        """Feeds one process, and a new one where that dies."""
        worker: _Worker | None = None
        while (piece := self._waiting.get()) is not None:
            future, call, arguments = piece
            if not future.set_running_or_notify_cancel():
                continue
            if self._closed:
                future.set_exception(Lost("nothing begins any more"))
                continue
            try:
                if worker is None:
                    worker = _Worker()
                    self._workers.add(worker)
                result = worker.compute(call, arguments)
            except Lost as error:
                self._workers = {other for other in self._workers if other is not worker}
                worker = None
                future.set_exception(error)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

    def stop(self) -> None:
        """Each training finishes its step and saves; what does not train has nothing to save and ends at once."""
        self._closed = True
        for worker in tuple(self._workers):
            worker.process.terminate()

    def close(self) -> None:
        """Ends the processes; what they computed is saved up to their last checkpoint."""
        self._closed = True
        for _ in self._threads:
            self._waiting.put(None)
        for worker in tuple(self._workers):
            worker.process.kill()
            worker.process.join()


class _Worker:
    """A process of its own, and the pipe to it."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other,), daemon=True)
        self.process.start()
        other.close()  # so that its death is the end of the pipe

    def compute(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What the call returns or raises there. Raises `Lost` where the process dies."""
        try:
            self.pipe.send((call, arguments))
            done, value = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            raise Lost(f"its process died with code {code} (-9: ended from outside, as where memory ran out)") from None
        if done:
            return value
        raise value


def _work(pipe: Connection) -> None:
    """A worker's life: calls come, results go. It ends when its parent does.

    Ctrl-C is for the parent alone, which then asks every worker once (SIGTERM) to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # a training listens to SIGINT again: the terminal must not send it to this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            call, arguments = pipe.recv()
        except EOFError:
            return
        answer: tuple[bool, Any]
        try:
            answer = (True, call(*arguments))
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = (False, error)
        try:
            pipe.send(answer)
        except (TypeError, AttributeError, PicklingError):  # an error that holds what cannot be sent
            pipe.send((False, RuntimeError("".join(map(str, getattr(answer[1], "__notes__", [answer[1]]))))))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class RayCluster:
    """A Ray cluster whose machines see the race's folder under the same path. Needs the package ray."""

    def __init__(self, folder: Path, threads: int, address: str | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError(
                "racing on a Ray cluster needs the package ray, which is not installed; "
                "install it with `pip install 'heptune[ray]'`, or race on this machine"
            ) from None
        self._ray = ray
        self._began_here = not ray.is_initialized()
        if self._began_here:
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores = [int(machine.get("CPU", 0)) for machine in machines]
        gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
        threads = max(1, min(threads, *cores)) if gpus else max(1, min(threads, max(cores)))
        self.width = max(1, gpus or sum(count // threads for count in cores))
        # Without a GPU of its own a task is shown none.
        self._run = ray.remote(num_cpus=threads, num_gpus=int(gpus > 0), max_retries=0)(_call)
        self._placed: set[Any] = set()
        try:
            self._require_shared(folder)
        except UsageError:
            self.close()
            raise

    def _require_shared(self, folder: Path) -> None:
        """Every machine has to see the folder: a file written here is looked for there."""
        probe = folder / f".seen-{os.getpid()}"
        probe.write_text("", "utf-8")
        try:
            for node in self._ray.nodes():
                if node["Alive"]:
                    at = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                    look = self._ray.remote(num_cpus=0, scheduling_strategy=at)(os.path.exists)
                    if not self._ray.get(look.remote(str(probe.resolve()))):
                        raise UsageError(
                            f"the machine {node['NodeManagerAddress']} does not see {folder.resolve()}; "
                            "put the race into a folder that all machines of the cluster share (--out)"
                        )
        finally:
            probe.unlink(missing_ok=True)

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Places the call on the cluster."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        reference = self._run.remote(call, arguments)
        self._placed.add(reference)

        def wait() -> None:
            try:
                future.set_result(self._ray.get(reference))
            except self._ray.exceptions.RayTaskError as error:  # what the call raised
                future.set_exception(error.cause if isinstance(error.cause, BaseException) else error)
            except self._ray.exceptions.TaskCancelledError:
                future.set_result("interrupted")
            except self._ray.exceptions.RayError as error:  # a worker or a machine died
                future.set_exception(Lost(f"the cluster lost it ({error})"))
            except BaseException as error:
                future.set_exception(error)
            finally:
                self._placed.discard(reference)

        threading.Thread(target=wait, daemon=True).start()
        return future

    def stop(self) -> None:
        """Each training finishes its step and saves; what waits for a machine does not begin."""
        for reference in tuple(self._placed):
            self._ray.cancel(reference, force=False)

    def close(self) -> None:
        """Ends what still runs, and leaves the cluster if it was joined here."""
        for reference in tuple(self._placed):
            self._ray.cancel(reference, force=True)
        if self._began_here:
            self._ray.shutdown()


def _call(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return call(*arguments)
