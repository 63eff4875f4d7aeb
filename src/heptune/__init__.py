"""Heptune fine-tunes language models with several techniques and finds out which one fits.

    run = heptune.tune("smollm2-135m", "reviews.jsonl", technique=heptune.Lora(rank=16))
    print(heptune.evaluate(run.folder).rows)

Names are loaded when they are first used, so that importing heptune takes no time.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_VERBS = ("tune", "pretrain", "resume", "race", "resume_race", "evaluate", "explain", "export", "load")
_ASKING = ("open_run", "open_runs", "server")
_ELSEWHERE = {"Run": "heptune.runs.run", "Settings": "heptune.engine.settings", "Message": "heptune.data.record"}
_ELSEWHERE |= {"Race": "heptune.racing.race"}
_ELSEWHERE |= {"plan": "heptune.planning.plan"}  # not through the API, which imports torch
_ELSEWHERE |= {"check": "heptune.tuning.checking"}  # nor this: the API takes memory that is the data's
_ELSEWHERE |= {"report": "heptune.reporting.report", "report_markdown": "heptune.reporting.report"}

_ELSEWHERE |= dict.fromkeys(("list_runs", "promote", "rollback", "serving"), "heptune.runs.lineage")

__all__ = ["Adapter", "DataOptions", "Freeze", "Full", "Lora", "Message", "PTuning", "PTuningV2", "Prefix", "Prompt"]
__all__ += ["QLora", "Race", "Run", "Settings", "Terms", "check", "evaluate", "explain", "export", "list_runs"]
__all__ += [
    "load",
    "open_run",
    "open_runs",
    "plan",
    "pretrain",
    "promote",
    "race",
    "report",
    "report_markdown",
    "resume",
    "resume_race",
    "rollback",
]
__all__ += ["server", "serving", "tune"]


def __getattr__(name: str) -> Any:
    if name in (*_VERBS, *_ASKING, "DataOptions", "Terms"):
        return getattr(importlib.import_module("heptune.api"), name)
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(_ELSEWHERE[name]), name)
    if name[:1].isupper():
        techniques = importlib.import_module("heptune.techniques")
        module = next((n for n in techniques.names() if n.replace("_", "") == name.lower()), None)
        if module is not None:
            return techniques.get(module)
    raise AttributeError(f"module 'heptune' has no attribute {name!r}")
