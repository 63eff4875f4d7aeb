"""What every contender trains on: token sequences of realistic lengths, the same on every machine.

The token ids are random (seeded; drawn from the first 40,000 entries of the vocabulary, above the lowest 100, where
special tokens stand): the time of a step depends on the lengths, not on what the text says, and random ids cannot
share a leading token by chance, so that nothing but the declared instruction can be shared. Losses are therefore
high and fall slowly. They are compared between contenders, not with anything a person would train.

A workload is a pool of 200 batches. A contender that keeps the order trains on the first batches of it. One that
groups by length or packs gets the whole pool to choose from, as it would in a real training: in a pool of only the
measured steps neither could do its work well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

POOL_BATCHES = 200
VOCABULARY = range(100, 40_000)
SEED = 20_240_607


@dataclass(frozen=True)
class Sequence:
    """One example: token ids [T] and which of them are targets [T]. Token 0 never is one."""

    tokens: np.ndarray
    supervised: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The ids where supervised, -100 elsewhere: what transformers expects."""
        return np.where(self.supervised, self.tokens, -100)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Workload:
    """A pool of sequences in training order; `batch_size` consecutive ones make one optimizer step."""

    name: str
    batch_size: int
    pool: tuple[Sequence, ...]

    def first(self, batches: int) -> list[Sequence]:
        """The sequences of the first `batches` steps, in order."""
        if batches > POOL_BATCHES:
            raise ValueError(f"{batches} steps asked for, but a workload holds {POOL_BATCHES}; use fewer --steps")
        return list(self.pool[: batches * self.batch_size])

    def tokens_per_batch(self, batches: int) -> int:
        """Real tokens in an average one of the first `batches` batches."""
        return round(sum(map(len, self.first(batches))) / batches)


def _ids(random: np.random.Generator, count: int) -> np.ndarray:
    return random.integers(VOCABULARY.start, VOCABULARY.stop, count)


def _tail(length: int, supervised: int) -> np.ndarray:
    return np.arange(length) >= length - supervised


def varied(batch_size: int = 8) -> Workload:
    """Log-normal lengths (mean about 117, 8 to 512 tokens), the last 40% of each supervised: chat-like data."""
    random = np.random.Generator(np.random.Philox(SEED))
    # With this spread half of a padded batch of 8 is padding. More spread would flatter whoever does not pad.
    spread = 0.6
    # A log-normal has mean exp(m + s^2 / 2); the cut at 512 takes half a token off it, hence 118.
    lengths = random.lognormal(np.log(118) - spread**2 / 2, spread, POOL_BATCHES * batch_size)
    pool = []
    for length in np.clip(np.rint(lengths), 8, 512).astype(int):
        pool.append(Sequence(_ids(random, length), _tail(length, round(0.4 * length))))
    return Workload("varied", batch_size, tuple(pool))


def shared(batch_size: int = 32) -> Workload:
    """Short classification: one instruction of 60 tokens for all, 10 to 40 tokens of its own, 2 or 3 supervised."""
    random = np.random.Generator(np.random.Philox(SEED + 1))
    instruction = _ids(random, 60)
    pool = []
    for _ in range(POOL_BATCHES * batch_size):
        own = int(np.clip(np.rint(random.normal(22, 7)), 10, 40))
        targets = int(random.integers(2, 4))
        tokens = np.concatenate([instruction, _ids(random, own + targets)])
        pool.append(Sequence(tokens, _tail(len(tokens), targets)))
    return Workload("shared", batch_size, tuple(pool))


def short(batch_size: int = 32) -> Workload:
    """Short classification without an instruction, as soft prompts are used: 20 to 60 tokens, 2 or 3 supervised."""
    random = np.random.Generator(np.random.Philox(SEED + 2))
    pool = []
    for _ in range(POOL_BATCHES * batch_size):
        length = int(np.clip(np.rint(random.normal(38, 10)), 20, 60))
        pool.append(Sequence(_ids(random, length), _tail(length, int(random.integers(2, 4)))))
    return Workload("short", batch_size, tuple(pool))


WORKLOADS = {"varied": varied, "shared": shared, "short": short}
