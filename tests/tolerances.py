"""Every tolerance of the tests, with its reason. What is not named here is compared bit for bit."""

from __future__ import annotations

import torch

# Two orders of summation of the same float64 numbers, nothing else: rounding at 1e-16, times the length of the sums.
FLOAT64 = 1e-10

# A float64 model of transformers whose RMSNorm, rotary embedding or softmax computes in float32 inside: rounding at
# 6e-8, grown through the layers; 1.6e-6 is the most that was seen (gemma3's gradient). A wrong equation gives 1e-2.
FLOAT64_WITH_FLOAT32_INSIDE = 1e-5

# Two orders of summation in float32: rounding at 6e-8, times the depth of a tiny model.
FLOAT32 = 1e-5

# float64 gradient against central differences with step 1e-6: the difference's own error is about 1e-9 of the values.
FINITE_DIFFERENCE = 1e-6


def assert_near(got: torch.Tensor, want: torch.Tensor, tolerance: float, what: str = "") -> None:
    """The largest difference is below `tolerance` times the largest wanted value (1e-3 at least)."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, wanted {tuple(want.shape)}"
    got, want = got.detach(), want.detach()
    scale = max(float(want.abs().max()), 1e-3) if want.numel() else 1.0
    difference = float((got.double() - want.double()).abs().max()) if want.numel() else 0.0
    assert difference <= tolerance * scale, f"{what}: differs by {difference:.3g}, values up to {scale:.3g}"
