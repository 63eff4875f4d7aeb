"""Replies of many tuned models, made at the same time on one base.

Each step computes one row for every reply that is being said, and some of the rows of prompts that are being read.
Replies join and leave between steps. What a prompt shares with one that was read before under the same model (a system
prompt, the conversation so far, the model's own virtual tokens) is copied, not computed.

One thread steps; everything else that needs the base (labels, tags) runs between two steps, as a job.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from heptune.core.errors import BaseModelError, HeptuneError, UsageError
from heptune.engine.forward import SELF_TEST_TOLERANCE, Forward
from heptune.models.mixture import Mixture, RowChanges
from heptune.models.slots import SMALLEST_POOL, Pool, Reading, Slot, Step, put, taken
from heptune.service.choice import Chosen, choose
from heptune.service.kept import Kept, KeysAndValues, shared
from heptune.service.reply import CANCELLED, FAILED, LENGTH, STOP, End, Piece, Reply

# A prompt waits for another one that is being read where the two share this many more tokens than what is there.
WORTH_WAITING = 16
# Rows of prompts in one step: reading them holds up those who speak. 256 rows take about as long as 20 steps of speech
# of smollm2-135m on two cores.
READ_AT_ONCE = 256
READ_AT_ONCE_ON_GPU = 2048


@dataclass(frozen=True)
class Room:
    """What replies may take. `replies` at a time; `waiting` for a place; `cache_bytes` of keys and values, a quarter
    of it for beginnings that are kept."""

    replies: int = 32
    waiting: int = 256
    cache_bytes: int = 2 << 30


class QueueFullError(HeptuneError):
    """More wait than may wait."""


class GoneError(HeptuneError):
    """What was asked for is not there any more."""


@dataclass(frozen=True)
class _Job:
    work: Callable[[], Any]
    future: Future[Any]


@dataclass
class Counts:
    """What an engine did since it began."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    said_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0


class Engine:
    """See the module. `step` does one step; `start` lets a thread do them until `stop`."""

    def __init__(self, forward: Forward, mixture: Mixture, room: Room | None = None) -> None:
        self.forward, self.mixture, self.room = forward, mixture, room or Room()
        self.anatomy = forward.anatomy
        self.kept = Kept(self.room.cache_bytes // 4)
        self.waiting: deque[Reply] = deque()
        self.active: list[Reply] = []
        self.counts = Counts()
        self._known: set[Any] = set()  # models that may be asked
        self._pools: dict[int, Pool] = {}
        self._jobs: deque[_Job] = deque()
        self._bell = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        on_cpu = forward.device.type == "cpu"
        self._read_at_once = READ_AT_ONCE if on_cpu else READ_AT_ONCE_ON_GPU
        shape, dtype = self.anatomy.shape, next(self.anatomy.model.parameters()).dtype
        self.bytes_per_position = 2 * shape.layers * shape.kv_heads * shape.head_width * dtype.itemsize
        if self.generates:
            self._require_agreement()

    @property
    def generates(self) -> bool:
        """Whether the base says anything: an encoder does not."""
        return self.anatomy.causal and self.forward.attends_over_forests

    # ---- from other threads

    def submit(self, reply: Reply) -> None:
        """Lets a reply wait for its place. Raises `QueueFullError`, and `UsageError` where it could never have one."""
        needed = self._capacity(reply) * self.bytes_per_position
        if needed > self._slots_bytes:
            raise UsageError(
                f"a prompt of {reply.prompt} tokens with a reply of at most {reply.limit} takes {needed >> 20} MiB of "
                f"keys and values, and there are {self._slots_bytes >> 20} MiB for all; ask for a shorter reply, or "
                "start the server with more --cache-memory"
            )
        with self._bell:
            self.require(reply.model)
            if len(self.waiting) >= self.room.waiting:
                raise QueueFullError(f"{len(self.waiting)} replies are waiting already; try again later")
            self.waiting.append(reply)
            self._bell.notify()

    def cancel(self, reply: Reply) -> None:
        """Nobody wants this reply any more: its place is free before the next step."""
        reply.cancelled = True
        with self._bell:
            self._bell.notify()

    def between_steps(self, work: Callable[[], Any]) -> Future[Any]:
        """Runs something that needs the base while no step runs. Raises `QueueFullError`."""
        future: Future[Any] = Future()
        with self._bell:
            if self._stopping:
                raise GoneError("the server stops")
            if len(self._jobs) >= self.room.waiting:
                raise QueueFullError(f"{len(self._jobs)} requests are waiting already; try again later")
            self._jobs.append(_Job(work, future))
            self._bell.notify()
        return future

    def require(self, model: Any) -> None:
        """Raises `GoneError` for a model that was unloaded meanwhile, and where the engine stops."""
        if self._stopping or model not in self._known:
            raise GoneError("the server stops" if self._stopping else "the model was unloaded")

    def start(self) -> None:
        """Begins to step in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="heptune-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what is unfinished ends as cancelled."""
        with self._bell:
            self._stopping = True
            self._bell.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for reply in (*self.active, *self.waiting):
            reply.cancelled = True
        self._let_go()
        while self._jobs:
            self._jobs.popleft().future.cancel()

    @property
    def lives(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Whether anything is being said, waited for, or computed."""
        return bool(self.active or self.waiting or self._jobs)

    # ---- the steps

    def _run(self) -> None:
        while True:
            with self._bell:
                self._bell.wait_for(lambda: self._stopping or self.busy)
                if self._stopping:
                    return
            self.turn()

    def turn(self) -> None:
        """One job, if any waits, and one step. What goes wrong ends those who are in it, never the engine."""
        if self._jobs:
            job = self._jobs.popleft()
            if job.future.set_running_or_notify_cancel():
                try:
                    job.future.set_result(job.work())
                except BaseException as error:
                    job.future.set_exception(error)
        try:
            self.step()
        except Exception as error:
            traceback.print_exc()
            self.counts.failed += len(self.active)
            for reply in self.active[:]:
                self._leave(reply, End(FAILED, f"{type(error).__name__}: {error}"), keep=False)

    @torch.no_grad()
    def step(self) -> None:
        """Lets replies in and out, computes some rows of each, and hands over what they say."""
        self._let_go()
        self._let_in()
        chosen = self._rows()
        if not chosen:
            return
        hidden = self._compute(chosen)
        speaking = [(n, reply) for n, (reply, count) in enumerate(chosen) if reply.filled == len(reply.tokens)]
        if speaking:
            last = np.cumsum([count for _, count in chosen]) - 1
            logits = self._logits(hidden[[int(last[n]) for n, _ in speaking]], [reply for _, reply in speaking])
            self._say(logits, [reply for _, reply in speaking])
        self.counts.steps += 1

    def _rows(self) -> list[tuple[Reply, int]]:
        """Who takes part in the next step, with how many rows each; the same model's side by side."""
        budget, found = self._read_at_once, []
        for reply in self.active:
            count = len(reply.tokens) - reply.filled
            if count > 1:
                count = min(count, budget)
                budget -= count
            if count:
                found.append((reply, count))
        return sorted(found, key=lambda pair: id(pair[0].rows))

    def _compute(self, chosen: Sequence[tuple[Reply, int]]) -> torch.Tensor:
        readings: list[Reading] = []
        tokens: list[int] = []
        positions: list[int] = []
        for reply, count in chosen:
            assert reply.slot is not None
            first = reply.filled
            readings.append(Reading(reply.slot, len(tokens), len(tokens) + count))
            tokens += reply.tokens[first : first + count]
            positions += range(first, first + count)
        step = Step(readings, self.forward.device)
        with self.mixture.over(_groups([(reply.rows, count) for reply, count in chosen])):
            return self.forward.hidden_in(step, np.asarray(tokens, np.int64), np.asarray(positions, np.int64))

    def _logits(self, hidden: torch.Tensor, replies: Sequence[Reply]) -> torch.Tensor:
        """[n, V]. A model that brings its own head has it applied to its own rows."""
        groups = _groups([(reply.rows, 1) for reply in replies])
        with self.mixture.over(groups):
            logits = self.forward.next_token(hidden)
        for start, stop, rows in groups:
            if rows.head is not None:
                with self.mixture.alone(rows):
                    logits[start:stop] = self.forward.next_token(hidden[start:stop])
        return logits

    def _say(self, logits: torch.Tensor, replies: Sequence[Reply]) -> None:
        allowed = [None if reply.walk is None else reply.walk.allowed(reply.said) for reply in replies]
        found = choose(logits, [reply.choice for reply in replies], [reply.said for reply in replies], allowed)
        for reply, chosen in zip(replies, found, strict=True):
            if reply.cancelled:
                continue
            try:
                self._add(reply, chosen)
            except Exception as error:  # it is this reply's alone
                traceback.print_exc()
                self.counts.failed += 1
                self._leave(reply, End(FAILED, f"{type(error).__name__}: {error}"), keep=False)

    def _add(self, reply: Reply, chosen: Chosen) -> None:
        if chosen.token in reply.stop_tokens:
            self._end(reply, STOP, Piece("", chosen))
            return
        reply.tokens.append(chosen.token)
        self.counts.said_tokens += 1
        reply.text.add(chosen.token)
        complete = reply.walk is not None and not len(reply.walk.allowed(reply.said))
        if reply.text.stopped or complete:
            self._end(reply, STOP, Piece("", chosen))
        elif len(reply.said) >= reply.limit:
            self._end(reply, LENGTH, Piece("", chosen))
        else:
            reply.hear(Piece(reply.text.piece(), chosen))

    def _end(self, reply: Reply, reason: str, last: Piece) -> None:
        reply.text.end()
        if reply.text.stopped:
            reason = STOP
        reply.hear(Piece(reply.text.piece(final=True), last.chosen))
        self.counts.finished += 1
        self._leave(reply, End(reason))

    # ---- coming and going

    def _let_go(self) -> None:
        for reply in [reply for reply in self.active if reply.cancelled]:
            self.counts.cancelled += 1
            self._leave(reply, End(CANCELLED))
        if any(reply.cancelled for reply in self.waiting):
            with self._bell:
                gone = [reply for reply in self.waiting if reply.cancelled]
                self.waiting = deque(reply for reply in self.waiting if not reply.cancelled)
            for reply in gone:
                self.counts.cancelled += 1
                reply.hear(End(CANCELLED))

    def _leave(self, reply: Reply, end: End, keep: bool = True) -> None:
        self.active.remove(reply)
        assert reply.slot is not None
        if keep and reply.filled > reply.rows.positions + WORTH_WAITING:
            self.kept.put(reply.model, reply.tokens[: reply.filled], taken(reply.slot, reply.filled))
        reply.slot.pool.give_back(reply.slot)
        reply.slot = None
        reply.hear(end)

    def _let_in(self) -> None:
        """Gives waiting replies a slot, in their order, as long as there is room. One that shares much with a prompt
        that is being read waits for it: what they share is computed once."""
        for reply in list(self.waiting):
            if len(self.active) >= self.room.replies:
                return
            tokens = np.asarray(reply.tokens[:-1])  # the last one is computed: what follows it is asked for
            count, values = self.kept.longest(reply.model, tokens)
            source: Reply | None = None
            coming = 0
            for other in self.active:
                if other.model is not reply.model:
                    continue
                common = shared(np.asarray(other.tokens), tokens)
                if min(common, other.filled) > count:
                    count, source = min(common, other.filled), other
                coming = max(coming, min(common, other.prompt))
            if coming >= count + WORTH_WAITING:
                continue
            slot = self._slot(reply)
            if slot is None:
                return
            with self._bell:
                self.waiting.remove(reply)
            if source is not None:
                assert source.slot is not None
                put(slot, taken(source.slot, count))
            elif count:
                put(slot, [(key[:, :count], value[:, :count]) for key, value in values])
            reply.slot, reply.cached = slot, max(0, count - reply.rows.positions)
            self.counts.prompt_tokens += reply.prompt - reply.rows.positions
            self.counts.cached_tokens += reply.cached
            self.active.append(reply)

    def _capacity(self, reply: Reply) -> int:
        return max(SMALLEST_POOL, 1 << (reply.prompt + reply.limit - 1).bit_length())

    @property
    def _slots_bytes(self) -> int:
        return self.room.cache_bytes - self.kept.limit_bytes

    @property
    def cache_bytes(self) -> int:
        """Keys and values of all slots that there is memory for."""
        return sum(pool.size * pool.capacity for pool in self._pools.values()) * self.bytes_per_position

    def _slot(self, reply: Reply) -> Slot | None:
        """A place for a reply; None where there is no memory for one now."""
        capacity = self._capacity(reply)
        pool = self._pools.setdefault(capacity, Pool(capacity))
        free = (self._slots_bytes - self.cache_bytes) // (capacity * self.bytes_per_position)
        if len(pool.slots) == pool.size and free < 1:
            return None
        return pool.take(min(pool.size + free, self.room.replies))

    # ---- what stands before a model's sequences

    def learn(self, models: Sequence[tuple[Any, RowChanges]], all_models: Sequence[RowChanges]) -> None:
        """Makes models known and keeps what stands before their sequences. Between steps."""
        self.mixture.know(all_models)
        for model, rows in models:
            self._known.add(model)
            if rows.positions and self.generates:
                self.kept.pin(model, [-1 - j for j in range(rows.positions)], self._before(rows))

    def forget(self, model: Any, all_models: Sequence[RowChanges]) -> None:
        """Lets go of a model. Between steps."""
        with self._bell:
            self._known.discard(model)
            for reply in (*self.active, *self.waiting):
                reply.cancelled |= reply.model is model
        self._let_go()
        self.kept.forget(model)
        self.mixture.know(all_models)

    @torch.no_grad()
    def _before(self, rows: RowChanges) -> KeysAndValues:
        """The keys and values [K, P, D] of each layer that stand before a model's sequences."""
        if rows.prefix is not None:
            dtype = next(self.anatomy.model.parameters()).dtype
            given = rows.prefix.to(self.forward.device, dtype)
            return [(given[i], given[i + 1]) for i in range(0, len(given), 2)]
        slot = Pool(max(1, rows.front)).take()
        step = Step([Reading(slot, 0, rows.front)], self.forward.device)
        ids = -1 - np.arange(rows.front)
        with self.mixture.over([(0, rows.front, rows)]):
            self.forward.hidden_in(step, ids, np.arange(rows.front))
        return taken(slot, rows.front)

    @torch.no_grad()
    def _require_agreement(self) -> None:
        """A few tokens, one after the other, must give what the model gives for all of them at once."""
        model, vocabulary = self.anatomy.model, self.anatomy.shape.vocabulary
        ids = np.array([(7919 * i + 11) % vocabulary for i in range(9)], np.int64)
        want = model(input_ids=torch.from_numpy(ids)[None].to(self.forward.device), use_cache=False).logits[0].double()
        slot, got = Pool(16).take(), []
        try:
            for first, last in ((0, 6), (6, 7), (7, 9)):
                step = Step([Reading(slot, 0, last - first)], self.forward.device)
                hidden = self.forward.hidden_in(step, ids[first:last], np.arange(first, last))
                got.append(self.forward.next_token(hidden).double())
            agrees = float((torch.cat(got) - want).norm() / want.norm())
        except (NotImplementedError, RuntimeError, TypeError, ValueError, LookupError) as error:
            agrees = float("inf")
            reason = f"{type(error).__name__}: {error}"
        else:
            reason = f"logits differ by {agrees:.2g} relative"
        if not agrees <= SELF_TEST_TOLERANCE.get(next(model.parameters()).dtype, 3e-2):
            raise BaseModelError(
                f"{type(model).__name__} does not say token by token what it says at once ({reason}), so its replies "
                "cannot be served; `heptune chat` speaks to one run at a time, `heptune export --to hf` lets others"
            )


def _groups(rows: Sequence[tuple[RowChanges, int]]) -> list[tuple[int, int, RowChanges]]:
    """Neighbours of one model as one group: (first row, behind the last, model)."""
    found: list[tuple[int, int, RowChanges]] = []
    at = 0
    for model, count in rows:
        if found and found[-1][2] is model:
            found[-1] = (found[-1][0], at + count, model)
        else:
            found.append((at, at + count, model))
        at += count
    return found
