"""Replay: training examples of earlier rounds mixed into a new one, so that what they taught is not forgotten.

Which ones is a function of the seed, and stands in the manifest: each round's numbers count its own training part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from heptune import tasks
from heptune.core.errors import DataError, RunError, UsageError
from heptune.core.events import Listener
from heptune.core.seeds import derive
from heptune.data.splits import sample
from heptune.runs import lineage
from heptune.runs.run import Run
from heptune.tasks.example import Example
from heptune.tasks.template import ChatTemplate
from heptune.tuning import problem as problems
from heptune.tuning.problem import Problem
from heptune.tuning.rounds import same_head


def draw(earlier: Sequence[Problem], new: int, share: float, seed: int) -> list[dict[str, Any]]:
    """Which training records of the earlier rounds (the first one first) are mixed into `new` records of a round.

    `share` of `new`, rounded, but at least one; of each round in proportion to its records, stratified where they are
    labelled. Raises UsageError for a share out of range.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"replay is {share}; it is a share of the new training examples from 0 (none) to 1, e.g. 0.1")
    if share == 0:
        return []
    sizes = [len(problem.parts.train) for problem in earlier]
    counts = _in_proportion(min(sum(sizes), max(1, round(share * new))), sizes)
    drawn = []
    for number, (problem, count) in enumerate(zip(earlier, counts, strict=True), 1):
        records = problem.parts.train
        if count:
            chosen = sample(records, range(len(records)), count, derive(seed, "replay", number))
            drawn.append({"round": number, "records": list(chosen)})
    return drawn


def require_alike(task: tasks.Task, earlier: Sequence[Problem], share: float) -> None:
    """Refuses to replay where a linear head would see examples that are not of its own classes: they have none of them,
    or mean others by the same numbers."""
    posed = [problem.task for problem in earlier]
    if share and any(tasks.has_head(each.name) for each in (task, *posed)):
        for each in posed:
            if not same_head(each.to_json(), task.to_json()):
                raise UsageError(
                    f"an earlier round learned {each.name} with other classes or in words, and a linear head cannot "
                    f"learn its examples along with {task.name}; leave --replay out"
                )


def _in_proportion(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` in whole numbers in proportion to `sizes`, by the largest remainders."""
    exact = [total * size / sum(sizes) for size in sizes]
    counts = [int(part) for part in exact]
    behind = sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))
    for i in behind[: total - sum(counts)]:
        counts[i] += 1
    return counts


class Replayed:
    """The training examples of a round with those that are replayed behind them, and where each stands."""

    def __init__(
        self,
        run: Run,
        problem: Problem,
        own: Sequence[Example],
        template: ChatTemplate,
        max_length: int,
        listener: Listener,
    ) -> None:
        """`own` are the round's own examples, of the records of its training part."""
        self.examples = own
        self._problem, self._own = problem, len(problem.parts.train)
        self._places: list[tuple[Problem, int]] = []
        drawn = run.manifest.get("round", {}).get("replay", {}).get("rounds", [])
        earlier = lineage.chain(run) if drawn else []
        for each in drawn:
            before = earlier[each["round"] - 1]
            self._add(before, problems.again(before.manifest), each["records"], template, max_length, listener)

    def _add(
        self,
        before: Run,
        problem: Problem,
        chosen: Sequence[int],
        template: ChatTemplate,
        max_length: int,
        listener: Listener,
    ) -> None:
        if before.manifest["template"] != template.text:
            raise RunError(f"{before.folder} used another chat template, so its examples cannot be replayed")
        records = [problem.parts.train[index] for index in chosen]
        try:
            examples = tasks.encode(problem.task, records, template, max_length, listener)
        except DataError as error:
            raise DataError(f"replaying {before.folder}: {error}") from None
        first = self._own + len(self._places)
        self.examples = [*self.examples, *(replace(example, record=first + example.record) for example in examples)]
        self._places += [(problem, index) for index in chosen]

    def place(self, index: int) -> str:
        """Where the record of an example stands."""
        if index < self._own:
            return self._problem.parts.place(index)
        problem, record = self._places[index - self._own]
        return problem.parts.place(record)
