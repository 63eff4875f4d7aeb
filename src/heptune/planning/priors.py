"""What is known about a technique's quality before anything runs: a prior, and never more than that.

It comes from published comparisons (`priors.json`, each with its source) and from this machine's own earlier races,
which `remember` writes down. Nothing here is a predicted accuracy: a score on another base and other data does not
carry over, but who was among the best does to a degree. So every comparison is reduced to tiers,

    1  among the best     behind the best by no more than the comparison's noise or 2% of the best score
    2  somewhat behind    by no more than three times the noise or 10%
    3  clearly behind

and a technique's prior is the mean of its tiers, weighted by how near a comparison is to what is planned: the same kind
of task counts fully, another a third; a tenfold difference in the number of examples halves the weight; a race on this
machine counts three times. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from heptune.models.embedded import cache_folder

TIERS = {1: "among the best", 2: "somewhat behind", 3: "clearly behind"}

_NEAR, _FAR = 0.02, 0.10  # shares of the best score: less is no difference for use, more is a clear one
_OTHER_TASK, _OWN_RACE = 1 / 3, 3.0
# Tasks of one kind: answered in words, or seen by a linear head.
_KIND = {"label": "classify", "tag": "extract"}
_RACES_FILE = "races.jsonl"


@dataclass(frozen=True)
class Comparison:
    """Techniques compared on one base and data set. `noise` is how far scores may differ by chance, in their unit."""

    name: str
    source: str
    task: str
    base: str
    examples: int
    metric: str
    noise: float
    scores: dict[str, float]
    noise_is: str = ""
    note: str | None = None
    own: bool = False
    lower_is_better: bool = False

    def tier(self, technique: str) -> int | None:
        """1, 2 or 3 (see `TIERS`); None where the technique was not compared."""
        if technique not in self.scores:
            return None
        best = self.best
        behind = abs(best - self.scores[technique])
        if behind <= max(self.noise, _NEAR * abs(best)):
            return 1
        return 2 if behind <= max(3 * self.noise, _FAR * abs(best)) else 3

    @property
    def best(self) -> float:
        """The best score."""
        return (min if self.lower_is_better else max)(self.scores.values())


@dataclass(frozen=True)
class Prior:
    """What earlier comparisons let expect of a technique.

    `score` is the weighted mean of its tiers (1 best, 3 worst) and None where nothing is known; `tier` is its nearest
    tier. `evidence` names the comparisons in words, the weightiest first.
    """

    technique: str
    score: float | None
    tier: int | None
    evidence: tuple[str, ...] = ()
    caution: str | None = None

    @property
    def words(self) -> str:
        """'among the best', ..., or that nothing is known."""
        return "no comparison known" if self.tier is None else TIERS[self.tier]


@dataclass(frozen=True)
class Entry:
    """One technique's result in a race on this machine. `race` tells races apart; `best_score` is that race's best."""

    base: str
    task: str
    examples: int
    technique: str
    score: float
    best_score: float
    race: str
    noise: float = field(default=0.0, kw_only=True)


def remember(entry: Entry) -> Path:
    """Adds a result to this machine's own races, in the user's cache folder; one line of JSON for each."""
    path = cache_folder() / _RACES_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
    return path


def own(task: str | None = None) -> list[Entry]:
    """Results of this machine's own races, of one kind of task or all; lines that cannot be read are passed over."""
    path = cache_folder() / _RACES_FILE
    found = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            entry = Entry(**json.loads(line))
        except (ValueError, TypeError):  # a line cut off by a full disk, or another version's
            continue
        if task in (None, entry.task):
            found.append(entry)
    return found


@cache
def published() -> tuple[Comparison, ...]:
    """The published comparisons."""
    return tuple(Comparison(**values) for values in _file()["comparisons"])


def of_races() -> list[Comparison]:
    """The machine's own races as comparisons."""
    races: dict[str, list[Entry]] = {}
    for entry in own():
        races.setdefault(entry.race, []).append(entry)
    found = []
    for name, entries in races.items():
        first = entries[0]
        scores = {entry.technique: entry.score for entry in entries}
        # A race tells no direction: its best is the lowest score where others lie above it.
        lower = any(entry.score > entry.best_score for entry in entries)
        noise = max(entry.noise for entry in entries)
        source = f"a race on this machine ({name})"
        comparison = Comparison(name, source, first.task, first.base, first.examples, "score", noise, scores)
        found.append(Comparison(**{**asdict(comparison), "own": True, "lower_is_better": lower}))
    return found


def priors(techniques: Sequence[str], task: str, examples: int) -> dict[str, Prior]:
    """The prior of each technique for a kind of task ('classify', 'chat') and this many examples."""
    comparisons = [*of_races(), *published()]
    return {name: _prior(name, task, examples, comparisons) for name in techniques}


def _prior(technique: str, task: str, examples: int, comparisons: Sequence[Comparison]) -> Prior:
    known = [(_weight(c, task, examples), c, tier) for c in comparisons if (tier := c.tier(technique)) is not None]
    caution = _file()["cautions"].get(technique)
    if not known:
        return Prior(technique, None, None, caution=caution)
    known.sort(key=lambda item: -item[0])
    score = sum(weight * tier for weight, _, tier in known) / sum(weight for weight, _, _ in known)
    evidence = tuple(_said(comparison, technique, tier) for _, comparison, tier in known)
    return Prior(technique, score, min(TIERS, key=lambda tier: abs(tier - score)), evidence, caution)


def _weight(comparison: Comparison, task: str, examples: int) -> float:
    distance = abs(math.log10(max(1, comparison.examples)) - math.log10(max(1, examples)))
    weight = 1 / (1 + distance)
    weight *= 1.0 if _KIND.get(comparison.task, comparison.task) == _KIND.get(task, task) else _OTHER_TASK
    return weight * (_OWN_RACE if comparison.own else 1.0)


def _said(comparison: Comparison, technique: str, tier: int) -> str:
    score, best = comparison.scores[technique], comparison.best
    beside = "the best" if score == best else f"best {best:g}"
    place = "" if comparison.own else f"{comparison.name} on "
    return f"{TIERS[tier]} in {place}{comparison.base}: {comparison.metric} {score:g}, {beside} ({comparison.source})"


@cache
def _file() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("priors.json").read_text("utf-8"))
