"""Who competes: every technique with several learning rates, and with another start where that matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from heptune import techniques
from heptune.techniques._contract import Technique

# Factors of each technique's own learning rate. Half a decade apart: closer ones differ by less than two seeds do.
RATES = (1 / 3, 1.0, 3.0)


@dataclass(frozen=True)
class Candidate:
    """A technique with all its settings, learning rate included. `name` is that of its run directory."""

    name: str
    technique: Technique

    def to_json(self) -> dict[str, Any]:
        """What a race keeps of it."""
        return {
            "name": self.name,
            "technique": self.technique.name,
            "settings": asdict(self.technique),  # type: ignore[call-overload]
            "learning_rate": self.technique.learning_rate,
            "run": f"candidates/{self.name}",
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Candidate:
        """What `to_json` wrote."""
        return cls(values["name"], techniques.build(values["technique"], values["settings"]))


def candidates(chosen: Sequence[Technique], rates: Sequence[float] = RATES, words: str = "") -> list[Candidate]:
    """Each technique at each rate (a factor of its own), and once more from `words` where it can start from a text."""
    found = []
    for technique in chosen:
        for factor in rates:
            rate = float(f"{technique.learning_rate * factor:.3g}")
            found.append(Candidate(f"{technique.name}-{rate:g}", _with(technique, learning_rate=rate)))
        if words and "starts_from_text" in technique.capabilities:
            started = _with(technique, init="text", init_text=words)
            found.append(Candidate(f"{technique.name}-{technique.learning_rate:g}-text", started))
    return list({candidate.name: candidate for candidate in found}.values())


def _with(technique: Technique, **settings: Any) -> Technique:
    return replace(technique, **settings)  # type: ignore[type-var]
