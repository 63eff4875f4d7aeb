"""P-Tuning v2: trained keys and values in every layer (Liu et al. 2022, section 3.2), Prefix Tuning's equation."""

from __future__ import annotations

from reference.prefix import apply

__all__ = ["apply"]
