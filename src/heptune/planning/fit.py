"""The smallest change that makes a training fit. Imports no torch.

Changes are tried in the order of what they cost the person, alone and combined:

    --micro-tokens N   passes of fewer rows        the same result to the last digits, a little slower
    --recompute        activations computed twice  the same result, about a third more time
    --quantize nf4     the frozen base in 4 bits   another, slightly worse base; slower
    --max-length N     shorter examples            what is cut off is not learned

`--batch-tokens` is not among them: it changes what a step learns, and a step's passes are already as small as
`--micro-tokens` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from heptune.engine.settings import Settings
from heptune.planning.estimate import ONE, PARALLEL, SHARDED, Candidate, Estimate, Estimator

# What a change costs the person, to rank changes: a halving of passes, recomputing, 4 bits, a halving of the length.
MICRO, RECOMPUTE, QUANTIZE, LENGTH = 1, 4, 10, 40
_LEAST_MICRO, _LEAST_LENGTH = 128, 64
_MOST_DEVICES = 1024


@dataclass(frozen=True)
class Fitted:
    """Settings under which a training fits, or (where `estimate.fits` is false) comes nearest to it. `changes` are
    those settings that differ from what was asked for, `price` what they cost the person."""

    settings: Settings
    changes: dict[str, Any]
    estimate: Estimate
    price: int

    @property
    def options(self) -> list[str]:
        """The changes as options of the command line."""
        return options_of(self.changes)


def options_of(changes: dict[str, Any]) -> list[str]:
    """{'recompute': True, 'micro_tokens': 512} -> ['--recompute', '--micro-tokens', '512']."""
    words: list[str] = []
    for name, value in changes.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        elif value is not None:
            words += [option, str(value)]
    return words


def as_asked(estimator: Estimator, candidate: Candidate, settings: Settings) -> Estimate:
    """The estimate without any change, in the first way of using the devices that fits (else the last)."""
    ways = strategies(estimator, candidate, settings)
    for strategy in ways[:-1]:
        found = estimator.estimate(candidate, settings, strategy)
        if found.fits:
            return found
    return estimator.estimate(candidate, settings, ways[-1])


def strategies(estimator: Estimator, candidate: Candidate, settings: Settings) -> tuple[str, ...]:
    """How the devices may be used, in the order in which it is tried. A base in 4 bits is not sharded: its packed
    weights do not survive it (bitsandbytes 1945)."""
    if estimator.target.devices == 1:
        return (ONE,)
    return (PARALLEL,) if estimator.quantized(candidate, settings) else (PARALLEL, SHARDED)


def smallest_change(estimator: Estimator, candidate: Candidate, settings: Settings) -> Fitted:
    """The cheapest change that fits; where none does, the change that comes nearest."""
    layout = estimator.layout(candidate.placement, settings)
    most = max(one.rows for one in layout.largest)
    micros = list(_halves(min(settings.micro_tokens, most), _LEAST_MICRO))
    lengths = list(_halves(min(settings.max_length, layout.longest_example), _LEAST_LENGTH))
    recomputing = [True] if settings.recompute else [False, True]
    may_quantize = not estimator.quantized(candidate, settings) and "trains_base" not in candidate.capabilities
    quantizing = [settings.quantize, "nf4"] if may_quantize else [settings.quantize]

    def changed(micro: int | None, recompute: bool, quantize: str | None, length: int | None) -> Settings:
        return replace(
            settings,
            micro_tokens=micro or settings.micro_tokens,
            recompute=recompute,
            quantize=quantize,
            max_length=length or settings.max_length,
        )

    nearest: Fitted | None = None
    options: list[tuple[int, int, Settings, str]] = []
    for (q, quantize), (halvings, length) in product(enumerate(quantizing), enumerate([None, *lengths])):
        least = changed(micros[-1] if micros else None, recomputing[-1], quantize, length)
        for strategy in strategies(estimator, candidate, least):
            estimate = estimator.estimate(candidate, least, strategy)
            if nearest is None or estimate.peak_bytes < nearest.estimate.peak_bytes:
                nearest = Fitted(least, _changes(settings, least), estimate, 0)
            if not estimate.fits:
                continue
            for (m, micro), recompute in product(enumerate([None, *micros]), recomputing):
                price = MICRO * m + RECOMPUTE * (recompute and not settings.recompute)
                price += QUANTIZE * q + LENGTH * halvings
                options.append((price, len(options), changed(micro, recompute, quantize, length), strategy))
        if options and not q and not halvings:
            break  # whatever quantizing or cutting would add costs more than any of these
    for price, _, chosen, strategy in sorted(options, key=lambda option: option[:2]):
        estimate = estimator.estimate(candidate, chosen, strategy)
        if estimate.fits:
            return Fitted(chosen, _changes(settings, chosen), estimate, price)
    assert nearest is not None
    return nearest


def devices_needed(estimator: Estimator, candidate: Candidate, settings: Settings) -> int | None:
    """The fewest devices (a power of two) over which the training fits when fully sharded; None if none up to 1024."""
    if estimator.quantized(candidate, settings):
        return None
    count = 2
    while count <= _MOST_DEVICES:
        wider = estimator.on(count)
        if count > estimator.target.devices and wider.estimate(candidate, settings, SHARDED).fits:
            return count
        count *= 2
    return None


def _halves(value: int, least: int) -> Iterator[int]:
    """The powers of two below `value`, down to `least`."""
    half = 1 << max(0, (value - 1).bit_length() - 1)
    while half >= least:
        yield half
        half //= 2


def _changes(asked: Settings, found: Settings) -> dict[str, Any]:
    names = ("micro_tokens", "recompute", "quantize", "max_length")
    return {name: getattr(found, name) for name in names if getattr(found, name) != getattr(asked, name)}
