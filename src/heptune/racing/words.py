"""The verdict in sentences, for a person who knows no statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from heptune.core.units import format_bytes, format_seconds
from heptune.racing.decision import Contender, Decision
from heptune.scoring.comparison import Comparison

# Below so many examples the interval of an accuracy around 0.8 is wider than 16 points (Wilson).
FEW_EXAMPLES = 100


def sentences(
    contenders: Mapping[str, Contender],
    result: Comparison,
    decision: Decision,
    *,
    metric: str,
    higher_is_better: bool,
    part: str,
) -> tuple[str, ...]:
    """Who won, by how much, what tied, what it costs, and what the evidence lacks."""
    speech = _Speech(contenders, result, decision, metric, higher_is_better, part)
    return (speech.who(), *speech.how_much(), speech.costs(), *speech.lacks())


class _Speech:
    def __init__(
        self,
        contenders: Mapping[str, Contender],
        result: Comparison,
        decision: Decision,
        metric: str,
        higher_is_better: bool,
        part: str,
    ) -> None:
        self.result, self.decision, self.part = result, decision, part
        self.metric, self.higher_is_better = metric, higher_is_better
        self.winner, self.best, self.baseline = decision.winner, decision.ranking[0], decision.baseline
        self.contender = contenders[self.winner]
        self.techniques = [name for name in decision.ranking if contenders[name].kind == "technique"]
        self.cheapest_tied = min(decision.tied, key=lambda name: contenders[name].cost)
        self.nothing_beats_it = self.winner not in self.techniques and bool(self.techniques)

    def who(self) -> str:
        interval, examples = self.result.scores[self.winner], self.result.components.examples
        low, high = sorted((self._score(interval.low), self._score(interval.high)))
        direction = "" if self.higher_is_better else ", lower is better"
        score = (
            f"{self.metric} {self._text(self._score(interval.value))} on {examples} examples ({self.part}{direction}); "
            f"in truth between {self._text(low)} and {self._text(high)} with {100 * self.result.level:g} % confidence."
        )
        if self.nothing_beats_it:
            return f"No technique is shown to beat the baselines, so the verdict is the baseline {self.winner}: {score}"
        return f"{self.winner} wins: {score}"

    def how_much(self) -> list[str]:
        said: dict[frozenset[str], str] = {}
        for a, b in self._worth_telling():
            said.setdefault(frozenset((a, b)), self._against(a, b))
        tied = [self._tied()] if len(self.decision.tied) > 1 else []
        return [*said.values(), *tied]

    def _worth_telling(self) -> list[tuple[str, str]]:
        """The winner against the best, or the next best; and what a technique brings beyond the best baseline."""
        pairs = []
        if self.nothing_beats_it and self.baseline:
            pairs.append((self.techniques[0], self.baseline))
        elif self.winner != self.best:
            pairs.append((self.best, self.winner))
        elif len(self.decision.ranking) > 1:
            pairs.append((self.winner, self.decision.ranking[1]))
        if self.winner in self.techniques and self.baseline:
            pairs.append((self.winner, self.baseline))
        return pairs

    def _against(self, a: str, b: str) -> str:
        pair = self.result.pair(a, b)
        if pair.difference.value < 0:
            pair = pair.turned()
        value, high = self._gap(pair.difference.value), self._gap(pair.difference.high)
        if pair.difference.value == 0:
            return f"{a} and {b} scored the same; in truth either may be better by up to {high}."
        lead = f"{pair.a} scored {value} better than {pair.b}"
        if pair.tie:
            worse = self._gap(-pair.difference.low)
            return (
                f"{lead}, which does not tell them apart: in truth it may be anything from {worse} worse to {high} "
                "better."
            )
        low = self._gap(pair.difference.low)
        least = f"from {low} to {high}" if low != self._gap(0) else f"more than nothing and up to {high}"
        return f"{lead}; in truth {least}, which chance and training seeds do not explain."

    def _tied(self) -> str:
        tied = _joined(self.decision.tied)
        alike = f"{tied} cannot be told apart: chance and another training seed explain such differences."
        if self.winner == self.cheapest_tied:
            also = ", which also scored best" if self.winner == self.best else ""
            return f"{alike} The cheapest is taken: {self.winner}{also}."
        if self.nothing_beats_it:
            cheapest = f"Of the baselines near the best one the cheapest is taken: {self.winner}."
            return f"{alike} A technique that is not shown to beat a baseline is not worth its training. {cheapest}"
        return f"{alike} Of those near the best that may win the cheapest is taken: {self.winner}."

    def costs(self) -> str:
        c = self.contender
        if c.kind == "technique":
            paid = f"Training took {format_seconds(c.time_s)} and {format_bytes(c.memory_bytes)} of memory at its peak"
        else:
            paid = "It needs no training" if c.time_s == 0 else f"It was ready after {format_seconds(c.time_s)}"
        kept = f"; the artifact has {format_bytes(c.artifact_bytes)}" if c.artifact_bytes else ""
        serving = f". In use: {c.serving.words}" if c.serving.words else ""
        return f"{paid}{kept}{serving}."

    def lacks(self) -> list[str]:
        examples, said = self.result.components.examples, []
        if examples < FEW_EXAMPLES:
            said.append(f"{examples} test examples are few; take the numbers as a first impression.")
        if self.techniques and not self.result.components.freedom:
            said.append(
                "Each technique was trained with one seed. How much another seed would change is not known, so this is "
                "about these trained models, not about the techniques."
            )
        pair = self._deciding()
        if pair is not None and self.result.pair(*pair).tie:
            said.append(self._needed(*pair))
        return said

    def _deciding(self) -> tuple[str, str] | None:
        """The two whose tie, if it is one, decides the verdict."""
        return next(iter(self._worth_telling()), None)

    def _needed(self, a: str, b: str) -> str:
        needed, examples = self.result.needed(a, b), self.result.components.examples
        ways = []
        if needed.examples is not None:
            more = _two_digits(max(1, needed.examples - examples))
            ways.append(f"about {_two_digits(needed.examples)} test examples ({more} more)")
        if needed.seeds is not None:
            ways.append(f"{needed.seeds} training seeds each")
        if not ways:
            return f"They are too much alike: no reasonable number of further examples would tell {a} and {b} apart."
        return f"If the difference is what it looks like, {' or '.join(ways)} would probably tell {a} and {b} apart."

    def _score(self, value: float) -> float:
        """From higher is better to the metric's own direction."""
        return value if self.higher_is_better else -value

    def _text(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.metric == "accuracy" else f"{value:.3f}"

    def _gap(self, value: float) -> str:
        """A distance, without sign."""
        return f"{100 * abs(value):.1f} points" if self.metric == "accuracy" else f"{abs(value):.3f}"


def _joined(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _two_digits(count: int) -> int:
    """More digits than two such a forecast is not worth; upwards."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // step) * step
