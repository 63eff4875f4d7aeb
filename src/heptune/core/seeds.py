"""Counter-based seeds: every random decision is a pure function of (seed, what it is for, which one).

Nothing draws from hidden generator state, so a resumed run and an uninterrupted one decide alike.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *keys: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive(0, "order", epoch)`.

    Different keys give independent seeds (BLAKE2b); the same keys always give the same one, on every machine.
    """
    text = "\x1f".join([str(seed), *(f"{type(k).__name__}:{k}" for k in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *keys: str | int) -> np.random.Generator:
    """A fresh numpy generator (Philox, counter-based) for one purpose."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *keys)))
