"""What a run is predicted to take, before its first step."""

from __future__ import annotations

from typing import Any

from heptune.core.errors import HeptuneError
from heptune.core.events import Listener
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy
from heptune.planning.estimate import Candidate
from heptune.planning.outlook import estimator_of, told
from heptune.tasks.template import ChatTemplate
from heptune.techniques._contract import Technique
from heptune.tuning.problem import Problem


def predicted(
    name: str,
    anatomy: Anatomy,
    technique: Technique,
    problem: Problem,
    template: ChatTemplate,
    settings: Settings,
    listener: Listener,
) -> dict[str, Any] | None:
    """Memory and time of the run; None where no formula covers the architecture."""
    try:
        estimator = estimator_of(name, anatomy, problem.task, problem.parts, template, settings, listener)
        return told(estimator.estimate(Candidate.of(technique), settings))
    except HeptuneError:
        return None
