"""What a run that is about to begin will take, from the examples that it learns from and the base that was loaded."""

from __future__ import annotations

from typing import Any

from heptune.core.events import Listener
from heptune.data.parts import DataParts
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy
from heptune.models.catalog import BaseFacts
from heptune.planning.estimate import Estimate, Estimator
from heptune.planning.target import target
from heptune.planning.workload import of_data
from heptune.tasks import Task
from heptune.tasks.template import ChatTemplate


def estimator_of(
    name: str,
    anatomy: Anatomy,
    task: Task,
    parts: DataParts,
    template: ChatTemplate,
    settings: Settings,
    listener: Listener,
) -> Estimator:
    """Estimates for a base that is loaded (nothing has been put into it yet) on this machine."""
    config = anatomy.model.config.get_text_config().to_dict()
    family, causal = anatomy.shape.family, anatomy.causal
    facts = BaseFacts(name, anatomy.shape, config, "the loaded base", family, name, both_ways=not causal)
    workload = of_data(task, parts, template, settings, name, causal)
    return Estimator(facts, workload, target(listener=listener))


def told(estimate: Estimate, steps: int | None = None) -> dict[str, Any]:
    """What a manifest keeps of an estimate: live bytes at the peak of a step by part, those of the process, and seconds
    (for so many `steps`, where they are known better by now)."""
    timing = estimate.timing
    assert timing is not None  # this machine is timed
    count = timing.steps if steps is None else steps
    return {
        "memory_bytes": estimate.memory.total,
        "resident_bytes": max(estimate.phases["train"], estimate.phases["evaluate"]),
        "step_s": timing.step_s,
        "time_s": count * timing.step_s + timing.validations * timing.validation_s,
    }
