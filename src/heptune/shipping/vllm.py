"""What vLLM takes of a LoRA in PEFT's folder, so that a person learns it here and not from a server that fails."""

from __future__ import annotations

from typing import Any

# What --max-lora-rank may be, and below what vLLM refuses: version 0.33, config/lora.py (MaxLoRARanks) and
# lora/peft_helper.py. Prompt adapters left it with version 0.10 (vllm-project/vllm, pull request 20588).
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def refusals(config: dict[str, Any]) -> list[str]:
    """Why vLLM would refuse this adapter_config.json; empty where it would not."""
    if config["peft_type"] != "LORA":
        return ["it takes LoRA alone, and no prompts and prefixes since version 0.10"]
    found = []
    if config.get("use_dora"):
        found.append("it has no DoRA")
    others = set(config.get("modules_to_save") or ()) - {"classifier", "score"}
    if others:
        found.append(f"it takes no own copy of {', '.join(sorted(others))} (modules_to_save)")
    if largest_rank(config) > RANKS[-1]:
        found.append(f"its largest rank is {RANKS[-1]}")
    return found


def max_rank(config: dict[str, Any]) -> int:
    """The smallest --max-lora-rank that holds this LoRA."""
    return next(rank for rank in RANKS if rank >= largest_rank(config))


def largest_rank(config: dict[str, Any]) -> int:
    """The largest rank at any of its sites."""
    return int(max([config["r"], *(config.get("rank_pattern") or {}).values()]))
