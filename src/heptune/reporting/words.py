"""What the numbers of an evaluation say, in plain words."""

from __future__ import annotations

from typing import Any

from heptune.reporting.findings import Estimate
from heptune.reporting.numbers import finite
from heptune.reporting.reading import estimate, mapping, objects, text, whole

# What baselines are compared in, and whether more of it is better (1) or less (-1).
_COMPARED = {"accuracy": 1, "F1": 1, "bits per byte": -1}


def evaluation_words(evaluation: dict[str, Any]) -> list[str]:
    """Sentences on an evaluation (`Evaluation.to_json`): tuned against the base, then against each other baseline."""
    rows = objects(evaluation.get("rows"))
    lines = [_comparison(mapping(evaluation.get("comparison")))]
    metrics = mapping(rows[0].get("metrics")) if rows else {}
    metric = next((name for name in _COMPARED if name in metrics), "")
    sign = _COMPARED.get(metric, 1)
    tuned = mapping(metrics.get(metric))
    value, low = (_signed(sign, tuned.get(end)) for end in ("value", "low" if sign > 0 else "high"))
    for row in rows[2:]:
        name = text(row.get("name"))
        score = _signed(sign, mapping(mapping(row.get("metrics")).get(metric)).get("value"))
        if value is None or score is None:
            continue
        if score >= value:
            equal = "as good as" if score == value else "better than"
            lines.append(f"{name} is {equal} the tuned model here at almost no cost: use that, or train longer.")
        elif low is not None and score >= low:
            lines.append(f"{name} lies within the tuned model's interval: that the tuning is better is not shown.")
    return [line for line in [*lines, _calibration(evaluation)] if line]


def _calibration(evaluation: dict[str, Any]) -> str:
    found = mapping(evaluation.get("calibration"))
    before, after = estimate(found.get("error")), estimate(found.get("calibrated_error"))
    temperature, examples, note = (
        finite(found.get("temperature")),
        whole(found.get("examples")),
        text(found.get("note")),
    )
    if before is None or after is None or temperature is None:
        return ""
    if temperature == 1:
        why = f" ({note})" if note else ""
        return f"expected calibration error of the tuned model's probabilities: {_interval(before)}{why}."
    own = text(evaluation.get("part")).startswith("the validation part")
    where = f"on {examples} validation records{', the very part scored here, so that it flatters' if own else ''}"
    return (
        f"expected calibration error of the tuned model's probabilities: {_interval(before)} as they come, "
        f"{_interval(after)} with the run's temperature {temperature:.2f} (fitted {where})."
    )


def _interval(found: Estimate) -> str:
    return f"{found.value:.3f}" + (f" [{found.low:.3f}, {found.high:.3f}]" if found.low is not None else "")


def _signed(sign: int, value: Any) -> float | None:
    """A number of which more is better."""
    number = finite(value)
    return None if number is None else sign * number


def _comparison(comparison: dict[str, Any]) -> str:
    difference, unit, p = mapping(comparison.get("difference")), text(comparison.get("unit")), comparison.get("p_value")
    value, low, high = (finite(difference.get(name)) for name in ("value", "low", "high"))
    p = finite(p)
    against = text(comparison.get("against")) or "the untouched base"
    if value is None:
        return ""
    test = "" if p is None else "; McNemar p < 0.0001" if p < 0.0001 else f"; McNemar p = {p:.4f}"
    if low is None or high is None:
        return f"tuned minus {against}: {value:+.3f} {unit}; one example shows no more{test}."
    if low <= 0 <= high:
        interval = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
        return f"no difference between tuned and {against} is shown: {interval} {unit}{test}."
    nearer, farther = sorted((abs(low), abs(high)))
    less_is_better = unit.startswith("nats")
    word = "better" if (value < 0) == less_is_better else "worse"
    return f"tuned is {word} than {against} by {abs(value):.3f} [{nearer:.3f}, {farther:.3f}] {unit}{test}."
