"""P-Tuning v2: deep prompts, trained directly

Principle
    Prefix Tuning's places without its network: in every layer, P keys and P values stand before those of the sequence
    and are themselves what is trained:

        attention(q, [K_prefix; K], [V_prefix; V])        K_prefix, V_prefix [P, K * D] in every layer

    Where Prefix Tuning was made for generation, v2 aims at understanding: classification and tagging, with small bases
    too, and with a head on the hidden states in place of words as labels.

Advantages
    Learns what prompts at the input alone do not: each layer gets its own. Far fewer trained elements than with a
    network, and nothing to fold: what is trained is what is used. Small bases and hard tagging tasks are where the
    paper finds the largest gain over prompts at the input.

Costs
    trainable elements: P * 2 * layers * K * D (K key/value heads of width D). Every sequence loses P positions; no
    extra rows are computed.

Use it when
    a classifier or tagger is wanted for each of many tasks on one base, and there is time for many epochs: the paper's
    best results often take 50 and more.

Rather not when
    the training has to be short, or the result merged into the weights. Then LoRA.

Paper
    Liu et al. 2022, "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks",
    section 3.

Differs from the paper
    Labels are words that the base generates, as the paper also tries ("verbalizer"); heads come with the
    tasks that need them. Several tasks are learned by one prompt when their examples stand in one file; `start_from`
    starts one task's prompt from another's. The paper finds the network of Prefix Tuning useful for some tasks and
    harmful for others; here it is off unless `reparameterised` is set. The prompt starts from the keys and values of
    real words, the paper's at random: 15 steps of 16 examples of SST-2 on smollm2-135m lead to a validation loss of
    0.39 from words and of 0.74 from random numbers. In layers with a sliding window the prompt leaves the window like
    any other position.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from heptune.models.anatomy import Anatomy
from heptune.models.shape import ModelShape
from heptune.techniques import _peft
from heptune.techniques._contract import Cost, Encode
from heptune.techniques._soft_prompt import AttachedSoftPrompt
from heptune.techniques.prefix import attach_prefix, check, prefix_config, prefix_cost, restore_prefix, start_from


@dataclass(frozen=True)
class PTuningV2:
    """P-Tuning v2's hyperparameters.

    Attributes:
        virtual_tokens: P, the positions that the prompt takes.
        init: what the prompt starts as: vocabulary (common words, drawn at random), text (the words of init_text), or
            random.
        init_text: the text whose words the prompt starts as, repeated or cut to its length.
        start_from: another run of prefix or p_tuning_v2 (or its artifact's folder) whose prompt this one starts from,
            in place of `init`. Both have the same virtual_tokens.
        reparameterised: whether keys and values come from the network, or are trained themselves.
        encoder_hidden: width of the network's hidden layer.
        learning_rate: peak learning rate. 2e-2 was the best of 7e-3 to 6e-2 on SST-2 and TREC
            (docs/results/techniques.md).
    """

    virtual_tokens: int = 20
    init: str = "vocabulary"
    init_text: str = ""
    start_from: str = ""
    reparameterised: bool = False
    encoder_hidden: int = 512
    learning_rate: float = 2e-2

    name: ClassVar[str] = "p_tuning_v2"
    capabilities: ClassVar[frozenset[str]] = frozenset({"detachable", "kv_prefix", "slow_start", "starts_from_text"})

    def __post_init__(self) -> None:
        check(self)
        if self.start_from:  # a run can be resumed from another folder than it was started in
            object.__setattr__(self, "start_from", str(Path(self.start_from).expanduser().resolve()))

    def attach(self, anatomy: Anatomy, seed: int, encode: Encode | None = None) -> AttachedSoftPrompt:
        """Puts keys and values before every layer's own."""
        if self.start_from:
            return start_from(self, anatomy, Path(self.start_from), seed)
        return attach_prefix(self, anatomy, seed, encode)

    def cost(self, shape: ModelShape) -> Cost:
        """The elements of the keys and values, or those of the network; no rows."""
        return prefix_cost(self, shape)

    def peft_config(self, shape: ModelShape) -> dict[str, Any]:
        """As PEFT's PrefixTuningConfig names it."""
        return prefix_config(self, shape)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether a folder holds deep prompts: Heptune's own, or PEFT's prefix without a projection."""
        return _peft.recognises(folder, cls.name, "PREFIX_TUNING", prefix_projection=False)

    @classmethod
    def restore(cls, anatomy: Anatomy, folder: Path) -> AttachedSoftPrompt:
        """Puts in deep prompts that Heptune or PEFT saved."""
        return restore_prefix(cls, anatomy, folder)


TECHNIQUE = PTuningV2
