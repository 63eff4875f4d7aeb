"""How far a model's probabilities can be believed, and the one number that makes them more believable.

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2): every log-score is
divided by one T > 0, which minimises the negative log-likelihood on examples that were not trained on. T above 1 makes
a model less sure, below 1 surer; which label is the likeliest never changes.

The expected calibration error (Naeini et al. 2015; Guo et al. 2017, section 2) sorts answers by their confidence into
bins of equal width and compares, bin by bin, the confidence with the share of right answers:

    ECE = sum over bins of (answers in the bin / all answers) * |share of right ones - mean confidence|

Log-scores are [n, labels]. One label is right (probabilities sum to one, softmax), or with `several` any number of them
(each label has a probability of its own, the sigmoid of its log-odds).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heptune.core.errors import RunError
from heptune.runs.files import read_json
from heptune.scoring.score import normalised
from heptune.scoring.statistics import RESAMPLES, Interval, bootstrap

BINS = 15  # Guo et al. 2017, section 5
FEWEST = 20  # from fewer records a temperature is mostly chance
# Guo et al. 2017 find 0.9 to 3.4 (their figure 2 and code); beyond these bounds nothing is left but sure or even.
LOWEST, HIGHEST = 0.1, 10.0
FILE = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """A temperature and where it comes from: `examples` it was fitted on (0: none), their mean negative log-likelihood
    per example without and with it (None where nothing was fitted), and `note`, why it is no better."""

    temperature: float = 1.0
    examples: int = 0
    loss: float | None = None
    calibrated_loss: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, folder: Path) -> Calibration:
        """That of a run directory; temperature 1 where the run has none. Raises `RunError` where it is damaged."""
        if not (folder / FILE).exists():
            return cls(note="the run was not calibrated")
        values = read_json(folder / FILE)
        temperature = values.get("temperature") if isinstance(values, dict) else None
        if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
            raise RunError(f"{folder / FILE} has no temperature above 0; take the file away, or tune anew")
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})


UNCALIBRATED = Calibration()


def log_probabilities(scores: np.ndarray, temperature: float = 1.0, several: bool = False) -> np.ndarray:
    """The logarithms of every label's probability at this temperature, [n, labels]."""
    scaled = np.asarray(scores, dtype=float) / temperature
    return -np.logaddexp(0.0, -scaled) if several else normalised(scaled)


def negative_log_likelihood(
    scores: np.ndarray, truth: np.ndarray, temperature: float = 1.0, several: bool = False
) -> float:
    """Its mean over examples. `truth` are label numbers, [n], or with `several` whether each label is right,
    [n, labels]."""
    log_p = log_probabilities(scores, temperature, several)
    if not several:
        return float(-log_p[np.arange(len(log_p)), truth].mean())
    against = log_probabilities(-np.asarray(scores, dtype=float), temperature, several)
    return float(-np.where(truth, log_p, against).sum(1).mean())


def fit(scores: np.ndarray, truth: np.ndarray, several: bool = False) -> Calibration:
    """The temperature with the least negative log-likelihood between LOWEST and HIGHEST.

    That is convex in 1/T, so the search over log T finds the least there is. Without `FEWEST` examples it is 1.
    """
    from scipy.optimize import minimize_scalar

    truth, count = np.asarray(truth), len(scores)
    if count < FEWEST:
        return Calibration(examples=count, note=f"{count} validation records are too few to calibrate on ({FEWEST})")

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(scores, truth, math.exp(log_temperature), several)

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    # The search never tries the bounds themselves; of equally good temperatures the one nearest to 1 is taken.
    best = min((float(found.x), *bounds, 0.0), key=lambda t: (loss(t), abs(t)))
    note = ""
    if best in bounds:
        said = "surer" if best == bounds[0] else "less sure"
        note = f"the validation records would have it {said} still: the temperature is at its bound"
    return Calibration(math.exp(best), count, loss(0.0), loss(best), note)


def confidences(
    scores: np.ndarray, truth: np.ndarray, temperature: float = 1.0, several: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """How sure each answer is and whether it is right: [n], or with `several`, where every label is an answer of its
    own (yes or no), [n, labels]."""
    p, truth = np.exp(log_probabilities(scores, temperature, several)), np.asarray(truth)
    if several:
        return np.maximum(p, 1 - p), (p > 0.5) == truth.astype(bool)
    return p.max(1), p.argmax(1) == truth


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error, 0 to 1. Bins are (0, 1/bins], (1/bins, 2/bins], ... as in the paper."""
    gaps = _gaps(confidence, right, bins)
    return float(np.abs(gaps.sum(0)).sum() / np.size(confidence))


def calibration_error_interval(
    confidence: np.ndarray,
    right: np.ndarray,
    bins: int = BINS,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`calibration_error` with its bootstrap interval over examples.

    The error of few examples is too large (chance fills the bins unevenly), that of resamples the more so: an interval
    may lie a little above the value.
    """
    gaps = _gaps(confidence, right, bins)
    answers = np.size(confidence) / len(gaps)  # of one example

    def statistic(drawn: np.ndarray, axis: int) -> np.ndarray:
        places = drawn.astype(int)
        total = sum(np.abs(column[places].sum(axis)) for column in gaps.T)
        return np.asarray(total / (answers * drawn.shape[axis]))

    return bootstrap(statistic, np.arange(len(gaps)), resamples=resamples, seed=seed, level=level)


def _gaps(confidence: np.ndarray, right: np.ndarray, bins: int) -> np.ndarray:
    """What every example adds to (right answers - confidence) of each bin, [n, bins]."""
    sure = np.asarray(confidence, dtype=float).reshape(len(confidence), -1)
    gap = np.asarray(right, dtype=float).reshape(sure.shape) - sure
    places = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.zeros((len(sure), bins))
    np.add.at(gaps, (np.arange(len(sure))[:, None], places), gap)
    return gaps
