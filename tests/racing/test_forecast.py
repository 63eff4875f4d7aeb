"""What a race is expected to take, from its pieces."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from heptune.racing.forecast import Forecast

PLAIN = Forecast(
    width=1,
    threads=1,
    parameters=1,
    step_s={"lora": 1.0},
    record_s=0.1,
    begin_s=2.0,
    validation_records=10,
    test_records=20,
    plans={"lora": {}},
)
FIELD: Any = [SimpleNamespace(technique=SimpleNamespace(name="lora"))] * 3


def test_a_linear_heads_first_weights_are_paid_once_in_each_training() -> None:
    headed = replace(PLAIN, head_s=10.0)
    more = headed.race_s(FIELD, 80, 1, 2) - PLAIN.race_s(FIELD, 80, 1, 2)
    # Every candidate, the finalist's second seed, and the probe among the baselines.
    assert more == pytest.approx(10.0 * (3 + 1 + 1))
    assert headed.exhaustive_s(FIELD, 80) - PLAIN.exhaustive_s(FIELD, 80) == pytest.approx(10.0 * 3)
    assert headed.steps_within(400.0, FIELD, 1, 2, 1000) < PLAIN.steps_within(400.0, FIELD, 1, 2, 1000)
