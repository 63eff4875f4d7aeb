"""The demo's data: what tenants write to a building's repair desk, and which trade must be sent.

432 messages written by hand, 54 for each of eight trades, one JSON object {"text", "label"} a line. The card beside
the file (`README.md`) states the deciding rules, the limits and the licence (Apache-2.0).
"""

from __future__ import annotations

from pathlib import Path

DATA: Path = Path(__file__).with_name("repair_desk.jsonl")
"""The labelled messages as a file that the readers of `heptune.data` understand."""
