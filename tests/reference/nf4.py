"""NF4 with double quantization, written from the paper and plain: every step in the open, nothing packed.

Dettmers et al. 2023, section 3 and appendix E. The 8 bits of the blocks' maxima are the dynamic type of Dettmers 2015,
"8-Bit Approximations for Parallelism in Deep Learning", section 2.
"""

from __future__ import annotations

import torch

# Appendix E.
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


def quantiles() -> torch.Tensor:
    """The same 16 numbers from their definition: quantiles of N(0, 1), 7 below zero, zero, 8 above, scaled to 1.

    The outermost probability, 1/2 (1/32 + 1/30) from the end, is the one at which bitsandbytes computed the paper's.
    """
    end = 1 - (1 / 32 + 1 / 30) / 2
    upper = torch.special.ndtri(torch.linspace(end, 0.5, 9, dtype=torch.float64)[:-1])
    lower = -torch.special.ndtri(torch.linspace(end, 0.5, 8, dtype=torch.float64)[:-1])
    found = torch.cat([upper, torch.zeros(1, dtype=torch.float64), lower]).sort().values
    return found / found.max()


def dynamic_map() -> torch.Tensor:
    """256 numbers: +-10^(e-6) times the middles of 2^e equal parts of [0.1, 1], for e = 0 ... 6; and 0 and 1."""
    numbers = [0.0, 1.0]
    for e in range(7):
        edges = torch.linspace(0.1, 1, 2**e + 1)
        middles = (edges[1:] + edges[:-1]) / 2
        numbers += (10.0 ** (e - 6) * middles).tolist() + (-(10.0 ** (e - 6)) * middles).tolist()
    return torch.tensor(sorted(numbers))


def nearest(values: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Each value's nearest number."""
    return numbers[(values[:, None] - numbers).abs().argmin(1)]


def in_steps(values: torch.Tensor) -> torch.Tensor:
    """Values of [-1, 1] on 65536 even steps. Not the paper's: bitsandbytes 0.50.2 on a CPU looks the 8 bits up in a
    table of that size, so that a value within 1.5e-5 of the middle between two numbers may go to the farther one."""
    return ((values + 1) * 32767.5 + 0.5).floor() / 32767.5 - 1


def in_blocks(values: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A vector as [blocks, size], filled up with zeros, and each block's largest absolute value [blocks, 1]."""
    blocks = torch.nn.functional.pad(values, (0, -len(values) % size)).view(-1, size)
    return blocks, blocks.abs().amax(1, keepdim=True)


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """What is left of a weight after it went through 4 bits: same shape and type."""
    flat = weight.detach().float().flatten()
    blocks, maxima = in_blocks(flat, 64)
    mean = maxima.mean()
    groups, scales = in_blocks((maxima - mean).flatten(), 256)
    again = nearest(in_steps((groups / scales.clamp(min=1e-30)).flatten()), dynamic_map()).view_as(groups) * scales
    again = again.flatten()[: len(maxima), None] + mean
    numbers = nearest((blocks / maxima.clamp(min=1e-30)).flatten(), NF4).view_as(blocks)
    return (numbers * again).flatten()[: len(flat)].view_as(weight).to(weight.dtype)
