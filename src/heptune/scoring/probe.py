"""The first weights of a linear head: those of a logistic regression on the hidden states as they are.

A head that starts at random pushes its noise into the base before it knows anything, and takes hundreds of steps to
get where a regression is in a second (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features", section 3.3:
linear probing, then fine-tuning).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from heptune.core.events import Listener
from heptune.core.seeds import generator
from heptune.models.readout import Readout
from heptune.scoring.score import Scorer
from heptune.tasks.example import Example

# Examples, and marks, that the regression learns from.
EXAMPLES, MARKS = 2000, 20_000
# A class that none of them has: as unlikely as this logit makes it beside the others' zero.
_ABSENT = -6.0


def start_from_probe(
    readout: Readout, scorer: Scorer, examples: Sequence[Example], seed: int, listener: Listener
) -> None:
    """Fits a regression to at most `EXAMPLES` examples under the model as it is now, and writes it into the head. A
    function of the examples, the model and the seed."""
    order = generator(seed, "probe").permutation(len(examples))[:EXAMPLES]
    chosen = _with_few_marks([examples[i] for i in sorted(order)], seed)
    states = np.concatenate(scorer.features(chosen, "a first linear head", listener))
    code = np.array([code for example in chosen for _, code in example.marks])
    weight = np.array([example.weight for example in chosen for _ in example.marks])
    matrix, bias = _fitted(states, code, weight, readout)
    with torch.no_grad():
        readout.weight.copy_(torch.from_numpy(matrix))
        readout.bias.copy_(torch.from_numpy(bias))


def _with_few_marks(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples with `MARKS` of their marks, drawn by the seed; all, where there are no more."""
    ends = np.cumsum([len(example.marks) for example in examples])
    kept = np.ones(ends[-1], bool)
    kept[generator(seed, "probe", "marks").permutation(ends[-1])[MARKS:]] = False
    own = [
        replace(example, marks=tuple(mark for mark, keep in zip(example.marks, part, strict=True) if keep))
        for example, part in zip(examples, np.split(kept, ends[:-1]), strict=True)
    ]
    return [example for example in own if example.marks]


def _fitted(states: np.ndarray, code: np.ndarray, weight: np.ndarray, readout: Readout) -> tuple[Any, Any]:
    """[C, d] and [C] for hidden states as they are; the regression sees them centred and scaled to one deviation."""
    mean, deviation = states.mean(0), states.std(0) + 1e-6
    scaled = (states - mean) / deviation
    classes = len(readout.bias)
    matrix, bias = np.zeros((classes, states.shape[1])), np.zeros(classes)
    if readout.independent:
        for number in range(classes):
            own = code // 2 == number
            there = code[own] % 2
            found = _regression(scaled[own], there, weight[own])
            if found:
                matrix[number], bias[number] = 2 * found[0][1], 2 * found[1][1]
            else:  # all of them have the label, or none
                bias[number] = -_ABSENT if there.any() else _ABSENT
    elif found := _regression(scaled, code, weight):
        rows, offsets, present = found
        bias[:] = offsets.min() + _ABSENT
        matrix[present], bias[present] = rows, offsets
    matrix = matrix / deviation
    return matrix, bias - matrix @ mean


def _regression(scaled: np.ndarray, code: np.ndarray, weight: np.ndarray) -> tuple[Any, Any, Any] | None:
    """Rows and offsets of each class that occurs, and which those are; None where there is only one."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(code)) < 2:
        return None
    model = LogisticRegression(max_iter=300, C=0.1, random_state=0).fit(scaled, code, sample_weight=weight)
    rows, offsets = model.coef_, model.intercept_
    if len(rows) == 1:  # two classes: the second against the first
        rows, offsets = np.concatenate([-rows / 2, rows / 2]), np.concatenate([-offsets / 2, offsets / 2])
    return rows, offsets, model.classes_.astype(int)
