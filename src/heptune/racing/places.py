"""Where a race's pieces are computed: here, in processes of their own, or on a Ray cluster.

Each place takes calls and gives futures. What a piece does is seen in its run directory, so that a place needs no way
back but the result.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from heptune.core.errors import HeptuneError, UsageError


class Lost(HeptuneError):
    """The process that computed a piece has died."""


class Place(Protocol):
    """Computes calls, at most `width` at a time."""

    width: int

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begins a call. Its future raises `Lost` where the process died."""

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

    def close(self) -> None:
        """Nothing runs."""


class Processes:
    """Processes on one machine, each with its share of the threads. They end with this one, however it ends."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.width, get_context("spawn"), _begin_worker, (os.getpid(),))

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Hands the call to a process; a pool that broke is replaced."""
        try:
            return self._wrapped(self._pool.submit(call, *arguments))
        except BrokenProcessPool:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = self._new()
            return self._wrapped(self._pool.submit(call, *arguments))

    def _wrapped(self, inner: Future[Any]) -> Future[Any]:
        outer: Future[Any] = Future()

        def done(finished: Future[Any]) -> None:
            if finished.cancelled():
                outer.cancel()
                return
            error = finished.exception()
            if isinstance(error, BrokenProcessPool):
                error = Lost("the process that computed it died (where memory ran out, the system ends it)")
            if error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(finished.result())

        inner.add_done_callback(done)
        return outer

    def close(self) -> None:
        """Ends the processes; what they computed is saved up to their last checkpoint."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list((getattr(self._pool, "_processes", None) or {}).values()):
            process.terminate()


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
        cores = sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        self.width = max(1, int(cores) // threads)
        self._run = ray.remote(num_cpus=threads, max_retries=0)(_call)
        self._require_shared(folder)

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
        reference = self._run.remote(call, arguments)

        def wait() -> None:
            try:
                future.set_result(self._ray.get(reference))
            except self._ray.exceptions.WorkerCrashedError as error:
                future.set_exception(Lost(f"its worker on the cluster died ({error})"))
            except self._ray.exceptions.RayTaskError as error:
                future.set_exception(error.cause if isinstance(error.cause, BaseException) else error)
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=wait, daemon=True).start()
        return future

    def close(self) -> None:
        """Leaves the cluster, if it was joined here."""
        if self._began_here:
            self._ray.shutdown()


def _call(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return call(*arguments)


def _begin_worker(parent: int) -> None:
    """A worker leaves Ctrl-C to its training, which saves, and ends when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
