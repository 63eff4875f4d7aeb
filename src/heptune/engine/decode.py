"""The likeliest continuations of many prompts at once, without padding.

The prompts are a forest: what they share is computed once. Each step then adds one row for every prompt that has not
ended. A row sees its own prompt and its own earlier rows and nothing else, so that a continuation depends on its prompt
alone, whatever stands beside it: only the order in which floating-point sums are taken differs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
from transformers import DynamicCache

from heptune.engine.forest import plant
from heptune.engine.forward import Forward
from heptune.models.attention import Extension, Visibility
from heptune.tasks.example import Example

# What may come next: the number of a prompt and what was said to it so far -> token ids; none where it is complete.
Allowed = Callable[[int, Sequence[int]], np.ndarray]


def as_example(prompt: Sequence[int], number: int) -> Example:
    """A prompt with one target behind it, so that it can be planted; what the target is does not matter."""
    return Example((*prompt, 0), (False,) * len(prompt) + (True,), number)


def continued(
    forward: Forward,
    prompts: Sequence[Sequence[int]],
    stops: Collection[int],
    limits: Sequence[int],
    allowed: Allowed | None = None,
) -> list[list[int]]:
    """For each prompt the tokens that are likeliest, one after the other, up to one of `stops` (left out) or its limit.

    With `allowed` they are chosen among those that it allows. Virtual tokens that stand before the answer are among the
    prompts' ids; those in front of everything are not.
    """
    forest = plant([as_example(prompt, i) for i, prompt in enumerate(prompts)])
    last = np.empty(len(prompts), np.int64)  # the row of each prompt's last token
    last[forest.target_example] = forest.target_row
    rows = np.arange(forest.rows)[None]
    seen = (rows <= last[:, None]) & (last[:, None] < forest.end[None])  # [prompts, rows so far]
    place = forest.position  # of all rows so far
    cache = DynamicCache()
    said: list[list[int]] = [[] for _ in prompts]

    def may(numbers: Iterable[int]) -> list[np.ndarray] | None:
        return None if allowed is None else [allowed(i, said[i]) for i in numbers]

    def goes_on(numbers: Iterable[int], choices: list[np.ndarray] | None) -> np.ndarray:
        room = np.array([len(said[i]) < limits[i] for i in numbers], bool)
        return room if choices is None else room & np.array([len(ids) > 0 for ids in choices], bool)

    every = range(len(prompts))
    visibility = Visibility(forest.end, forest.position, forward.device)
    choices = may(every)
    found = forward.likeliest(forest.token, forest.position, visibility, cache, last, choices)
    alive = np.flatnonzero(goes_on(every, choices))
    found = found[alive]
    while len(alive):
        ends = np.isin(found, list(stops))
        alive, found = alive[~ends], found[~ends]
        for i, token in zip(alive, found, strict=True):
            said[i].append(int(token))
        choices = may(alive)
        on = goes_on(alive, choices)
        alive, found = alive[on], found[on]
        if not len(alive):
            break
        own = np.zeros((len(prompts), len(alive)), bool)
        own[alive, np.arange(len(alive))] = True
        seen = np.concatenate([seen, own], axis=1)
        position = np.array([len(prompts[i]) + len(said[i]) - 1 for i in alive], np.int64)
        place = np.concatenate([place, position])
        visibility = Extension(seen[alive], position, place, forward.device)
        if choices is not None:
            choices = [ids for ids, goes in zip(choices, on, strict=True) if goes]
        found = forward.likeliest(found, position, visibility, cache, np.arange(len(alive)), choices)
    return said
