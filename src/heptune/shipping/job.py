"""What an export has to know, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from heptune import tasks, techniques
from heptune.core.errors import DataError, HeptuneError, TechniqueError, UsageError
from heptune.core.events import Listener, Note
from heptune.data.record import Record
from heptune.data.splits import sample
from heptune.engine.headed import FILE as HEAD_FILE
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy, dissect
from heptune.models.embedded import EMBEDDED
from heptune.models.load import Base
from heptune.models.quantization import dequantize
from heptune.models.readout import Readout
from heptune.runs.run import Run
from heptune.shipping import parity
from heptune.shipping.parity import TOLERANCES, Asked, Held, Reference, Tolerance
from heptune.shipping.voices import PlainVoice
from heptune.tasks.choose import Choose, right
from heptune.tasks.classify import Classify
from heptune.tasks.complete import Complete
from heptune.tasks.example import Example
from heptune.tasks.template import ChatTemplate
from heptune.tuning import base as bases
from heptune.tuning import problem as problems
from heptune.tuning import rounds
from heptune.tuning.use import Bare, Tuned, opened

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
HELD_OUT_TOKENS = 256  # of a held-out record; longer ones lose their end


@dataclass(frozen=True)
class Job:
    """A run to export. `type` is that of the weights, '' the format's own choice; `shard` the largest file, in bytes;
    `lora_only` asks for a LoRA where a whole model could be written."""

    run: Run
    type: str
    shard: int
    lora_only: bool
    listener: Listener

    @property
    def technique(self) -> Any:
        """The run's technique, a class."""
        return techniques.get(self.run.manifest["technique"]["name"])

    @property
    def task(self) -> Any:
        """What the run learned."""
        return tasks.from_json(self.run.manifest["task"])

    @property
    def settings(self) -> Settings:
        """Those of the run's training."""
        return Settings(**self.run.manifest["settings"])

    @property
    def has_head(self) -> bool:
        """Whether a linear head answers."""
        return (self.run.artifact / HEAD_FILE).is_file()

    @property
    def beneath(self) -> list[rounds.Layer]:
        """The rounds beneath the run's own technique."""
        return rounds.beneath(self.run)

    @property
    def base_name(self) -> str:
        """What other programs load the base by: its hub id, or its folder."""
        name = str(self.run.manifest["base"]["name"])
        return EMBEDDED[name].hub_id if name in EMBEDDED else name

    @property
    def base_place(self) -> str:
        """What Heptune loads the base by."""
        inside = str(self.run.folder / bases.INITIAL)
        return inside if "pretrain" in self.run.manifest else str(self.run.manifest["base"]["name"])

    @property
    def quantized(self) -> bool:
        """Whether the run learned on a base in 4 bits."""
        return self.settings.quantize is not None or "quantizes_base" in self.technique.capabilities

    def tolerance(self, kind: str) -> Tolerance:
        """What the rounding of the weights to `kind` explains, and that of the base, where it computes in less than
        float32 (on a GPU)."""
        return TOLERANCES["bf16" if kind == "f32" and torch.cuda.is_available() else kind]

    def require_alone(self) -> None:
        """Raises `UsageError` where the run's artifact is nothing without earlier rounds."""
        if below := self.beneath:
            raise UsageError(
                f"{self.run.folder} stands on what {len(below)} earlier round{'s' * (len(below) > 1)} learned, and its "
                "adapter alone is nothing without that; choose --to hf, which writes all of it as one model, or serve "
                "it with `heptune serve`"
            )

    def require_words(self, format: str) -> None:
        """Raises `UsageError` where a linear head answers, for which the format has no place."""
        if self.has_head:
            raise UsageError(
                f"{self.run.folder} learned {self.task.name} with a linear head, and {format} has no place for one; "
                "choose --to hf, or serve it with `heptune serve`"
            )

    def require_mergeable(self, format: str) -> None:
        """Raises `TechniqueError` where something that was learned is no change of the base's weights."""
        for each in (*(layer.technique for layer in self.beneath), self.technique):
            if "mergeable" in each.capabilities:
                continue
            soft = each.capabilities & {"virtual_tokens", "kv_prefix"}
            what = "trained vectors before the text" if soft else "small networks between the layers"
            own = "--to peft" if soft else "--to adapterhub"
            raise TechniqueError(
                f"what {each.name} learned are {what}, which no weight of the base can hold, and {format} holds the "
                f"base's weights alone; export it as what it is ({own}), or serve it with `heptune serve`"
            )

    def bare(self) -> tuple[Base, Anatomy, ChatTemplate]:
        """The run's base, untouched, in the type that it was trained in."""
        kinds = [layer.technique for layer in self.beneath]
        base = bases.load_again(self.run, self.technique, self.listener, kinds)
        return base, dissect(base.model), bases.template_of(base, self.run.manifest["template"])

    def floating(self) -> tuple[Base, Anatomy, ChatTemplate]:
        """The run's base; where it learned on one in 4 bits with the weights that those compute with."""
        base, anatomy, template = self.bare()
        if self.quantized:
            bases.quantize_where_asked(anatomy, self.technique, self.settings, self.listener)
            dequantize(base.model)
        return base, dissect(base.model), template

    def merged(self) -> tuple[Base, Anatomy, ChatTemplate]:
        """The base with everything that was learned in its weights. Raises `TechniqueError` where that cannot be."""
        base, anatomy, template = self.bare()
        if (
            self.type != "bf16"
        ):  # on a GPU the base is in bfloat16, in which a sum with what was learned loses part of it
            base.model.float()
        rounds.merged(self.run, self.beneath, anatomy, self.listener)
        return base, anatomy, template

    def head(self, anatomy: Anatomy) -> Readout | None:
        """The run's linear head."""
        return rounds.head_of(self.run, anatomy, self.run.artifact)

    def reference(self) -> Reference:
        """What the run says, and its untouched base before."""
        bare = Bare.of(self.run, self.listener)
        untouched: list[torch.Tensor] = []
        prompts: list[Asked] = []
        if not self.has_head:
            prompts = [Asked(tuple(bare.template.prompt(messages))) for messages in parity.CONVERSATIONS]
            prompts += [Asked(tuple(Complete().prompt(text, bare.template))) for text in parity.TEXTS]
            voice = PlainVoice(bare.anatomy.model, bare.template.stop_tokens)
            untouched = [voice.logits(prompt) for prompt in prompts]
        tuned = opened(self.run, self.listener, bare)
        if self.has_head:
            prompts = [
                Asked(example.tokens, tuple(dict.fromkeys(place for place, _ in example.marks)))
                for example in self._texts(tuned)
            ]
            return Reference.of(OwnHead(tuned), prompts, self._held_out(tuned), self.listener)
        if tuned.anatomy.placement.inner:
            raise TechniqueError(
                f"{self.run.folder} has pseudo tokens between the text and the answer, and other programs put all of "
                "them in front; serve it with `heptune serve`"
            )
        voice = PlainVoice(tuned.model, tuned.template.stop_tokens)
        return Reference.of(voice, prompts, self._held_out(tuned), self.listener, untouched)

    def _texts(self, tuned: Tuned) -> list[Example]:
        """The fixed texts as a linear head sees them."""
        texts = [*parity.TEXTS, *(messages[-1].content for messages in parity.CONVERSATIONS)]
        label = getattr(self.task, "labels", (None,))[0]
        records = [
            Record(1, text=text, spans=()) if label is None else Record(1, text=text, label=label) for text in texts
        ]
        length = tuned.scorer.max_length
        return [example for record in records for example in self.task.scored(record, 0, tuned.template, length)]

    def _held_out(self, tuned: Tuned) -> list[Held]:
        """Some of the records that the run held out, if its data is still what it was."""
        try:
            problem = problems.again(self.run.manifest, self.listener)
            _, records = problem.parts.held_out()
        except (HeptuneError, OSError) as error:
            self.listener(Note(f"the run's held-out records are not compared: {error}", "warning"))
            return []
        choices = len(self.task.labels) if isinstance(self.task, Classify) else 4
        count = min(len(records), parity.RECORDS, max(2, parity.SEQUENCES // choices))
        length = min(HELD_OUT_TOKENS, tuned.scorer.max_length)
        found = []
        for i in sample(records, range(len(records)), count, 0) if records else ():
            try:
                found += self._held(records[i], tuned.template, length)
            except DataError:  # not even its question fits
                continue
        return found

    def _held(self, record: Record, template: ChatTemplate, length: int) -> list[Held]:
        if isinstance(self.task, Classify | Choose):
            place = self.task.labels.index(record.label or "") if isinstance(self.task, Classify) else right(record)
            return [Held(tuple(self.task.candidates(record, 0, template, length)), place)]
        examples = [e for e in self.task.encode(record, 0, template, length) if e.targets]
        independent = bool(getattr(self.task, "independent", False))
        return [Held((example,), independent=independent) for example in examples[:1]]


class OwnHead:
    """The run with its linear head, through Heptune's own engine."""

    def __init__(self, tuned: Tuned) -> None:
        self.tuned = tuned

    def logits(self, asked: Asked) -> torch.Tensor:
        """[M, C]."""
        marks = tuple((place, 0) for place in asked.places)
        (found,) = self.tuned.scorer.seen([Example.marked(asked.tokens, marks, 0)], "asking the run")
        return torch.from_numpy(found)

    def greedy(self, asked: Asked, count: int) -> list[int]:
        """It says nothing."""
        return []


def require_type(job: Job, allowed: Sequence[str], format: str) -> str:
    """The type that was asked for, the first of those allowed where none was."""
    if job.type and job.type not in allowed:
        raise UsageError(f"--type is {job.type}; {format} has {', '.join(allowed)}")
    return job.type or allowed[0]
