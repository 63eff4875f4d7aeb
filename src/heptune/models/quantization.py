"""A frozen base in 4 bits: NF4 with double quantization, for every linear site but the head

    block     64 weights w in storage order; m = max |w|
    weight    4 bits: the nearest of 16 fixed numbers q, quantiles of a normal distribution, to w / m
    m         8 bits: blocks of 256 of them, less their mean over the layer, each with its own float32 maximum

    W ~ q * m,   4 + 8/64 + 32/(64*256) = 4.127 bits for a weight

A site multiplies with the weight in floating point, made for that moment and made again in the backward pass: at most
one layer's weight is alive. Embeddings, norms, biases and the head stay as they are.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section 3. bitsandbytes computes it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from heptune.core.errors import TechniqueError
from heptune.core.events import Listener, Progress, ignore

if TYPE_CHECKING:
    from heptune.models.anatomy import Anatomy

# The paper's block sizes for weights and for their maxima (section 3).
BLOCK = 64
STATISTICS_BLOCK = 256


def require_library() -> None:
    """Raises `TechniqueError` where bitsandbytes is not installed; does not import it."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise TechniqueError(
            "a base in 4 bits needs bitsandbytes, which is not installed; "
            "install it with `pip install 'heptune[qlora]'`, or tune without quantization"
        )


def quantize(anatomy: Anatomy, listener: Listener = ignore) -> None:
    """Replaces every linear site but the head by a frozen one in 4 bits; those that are already stay as they are.

    Raises `TechniqueError` where bitsandbytes is missing, or a technique is in the model already.
    """
    found = {site.path: anatomy.module(site) for site in anatomy.select(["linear"])}
    for path, module in found.items():
        if not isinstance(module, nn.Linear | Conv1D | QuantizedLinear):
            raise TechniqueError(f"{path} holds {type(module).__name__}; quantize the base before attaching to it")
    floating = [path for path, module in found.items() if not isinstance(module, QuantizedLinear)]
    if floating:
        _library()
    for done, path in enumerate(floating, 1):
        anatomy.model.set_submodule(path, QuantizedLinear(found.pop(path)))
        listener(Progress("storing the base in 4 bits", done, len(floating), "layers"))
    if floating:
        _let_go_of_the_file(anatomy.model)


def _let_go_of_the_file(model: nn.Module) -> None:
    """On a CPU the weights of a file lie in one mapping of it, which stays in memory while one tensor is left in it."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


def dequantize(model: nn.Module) -> None:
    """Replaces every 4-bit layer by an ordinary one with the weight that it computed with."""
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            model.set_submodule(path, module.ordinary())


class QuantizedLinear(nn.Module):
    """A frozen linear site, y = x W^T + b, whose weight is stored in 4 bits.

    `packed`: two weights in a byte. `maxima`: 8 bits for each block of weights; `maxima_scale` float32 for each block
    of those; `maxima_mean` float32. Both are kept as bytes, so that casting the model does not round them.
    """

    packed: torch.Tensor
    maxima: torch.Tensor
    maxima_scale: torch.Tensor
    maxima_mean: torch.Tensor

    def __init__(self, base: nn.Linear | Conv1D) -> None:
        super().__init__()
        weight = base.weight.detach()
        self.transposed = isinstance(base, Conv1D)
        self.shape, self.dtype = weight.shape, weight.dtype
        rows, columns = self.shape
        self.in_features, self.out_features = (rows, columns) if self.transposed else (columns, rows)
        # From float32 whatever the type: a base has the same 4 bits wherever it was loaded. With its blocks as rows,
        # the last one filled with zeros: bitsandbytes 0.50.2 on a CPU gives back wrong weights where a row is no
        # multiple of a block (its dequantization starts a block at each row, its quantization does not).
        blocks = F.pad(weight.float().flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
        packed, state = _library().quantize_4bit(blocks, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
        self.register_buffer("packed", packed.flatten())
        self.register_buffer("maxima", state.absmax)
        self.register_buffer("maxima_scale", state.state2.absmax.view(torch.uint8))
        self.register_buffer("maxima_mean", state.offset.reshape(1).view(torch.uint8))
        self.register_parameter("bias", base.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return _FrozenLinear.apply(x, partial(self.matrix, x.dtype), self.bias)

    def matrix(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight as [out, in], in floating point; by default of the type that the base had."""
        weight = self._floating(dtype or self.dtype)
        return weight.T if self.transposed else weight

    def ordinary(self) -> nn.Linear | Conv1D:
        """A linear layer of the base's own kind with this weight."""
        with torch.device("meta"):
            if self.transposed:
                module = Conv1D(self.out_features, self.in_features)
            else:
                module = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        module.weight = nn.Parameter(self._floating(self.dtype), requires_grad=False)
        module.bias = self.bias
        return module

    def _floating(self, dtype: torch.dtype) -> torch.Tensor:
        library = _library()
        # bitsandbytes has no float64: float32 then, in which every quantized weight is exact.
        native = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
        codes = _codes(self.packed.device)
        maxima = library.QuantState(
            absmax=self.maxima_scale.view(torch.float32), code=codes[1], blocksize=STATISTICS_BLOCK, dtype=torch.float32
        )
        state = library.QuantState(
            absmax=self.maxima,
            shape=(len(self.maxima), BLOCK),
            code=codes[0],
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=native,
            offset=self.maxima_mean.view(torch.float32),
            state2=maxima,
        )
        flat = library.dequantize_4bit(self.packed, state).flatten()
        return flat[: self.shape.numel()].view(self.shape).to(dtype)

    def extra_repr(self) -> str:
        """The sizes, as other linear layers print them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, nf4"


class _FrozenLinear(torch.autograd.Function):
    """y = x W^T + b with W and b frozen. `matrix()` makes W, and makes it again in the backward pass: none is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, matrix: Callable[[], torch.Tensor], bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.matrix = matrix
        return F.linear(x, matrix(), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grad_outputs[0] @ ctx.matrix(), None, None


@cache
def _codes(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The 16 numbers of NF4 and the 256 of the maxima's 8 bits: the same for every layer."""
    library = _library()
    return library.get_4bit_type("nf4", device=device), library.create_dynamic_map().to(device)


@cache
def _library() -> Any:
    """The functions of bitsandbytes. Imported here and once: it takes from 2 to 13 seconds."""
    require_library()
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)  # on some processors it advises to install a kernel that is not used here
    try:
        return importlib.import_module("bitsandbytes.functional")
    finally:
        log.setLevel(level)
