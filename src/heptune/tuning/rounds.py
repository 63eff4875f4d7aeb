"""Rounds: a run that goes on from an earlier one, and what of the earlier ones is inside the model then.

    continue   the same adapter, trained on: what the parent left is what training starts from
    merge      the parent's adapter is folded into the base's weights; a new technique starts on those
    stack      the parent's adapter stays where it is, frozen; a new technique starts on top

Nothing big is written for it: whoever loads a round builds it from the base and the artifacts of its chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heptune import tasks, techniques
from heptune.core.errors import TechniqueError, UsageError
from heptune.core.events import Listener, Note
from heptune.core.registry import unknown
from heptune.core.seeds import derive
from heptune.engine import headed
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy
from heptune.models.load import Base
from heptune.models.mixture import RowChanges, together
from heptune.models.readout import Readout
from heptune.runs import lineage
from heptune.runs.lineage import CONTINUE, MERGE, STACK, WAYS
from heptune.runs.run import Run
from heptune.scoring.score import readout_of
from heptune.techniques._contract import Attached, Encode, Technique
from heptune.tuning import base as bases


@dataclass(frozen=True)
class Layer:
    """An earlier round inside a model: folded into the base's weights, or frozen where it stands."""

    run: Run
    technique: type[Technique]
    folded: bool


@dataclass(frozen=True)
class Start:
    """Where a new round starts."""

    parent: Run
    onto: str
    technique: Technique
    settings: Settings


class Stacked:
    """A technique on top of frozen ones: everything is the upper one's, but that the lower ones learn of each step."""

    def __init__(self, top: Attached, frozen: Sequence[Attached]) -> None:
        self.top, self.frozen = top, tuple(frozen)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained: the upper technique's."""
        return self.top.parameters

    def begin_step(self, seed: int | None) -> None:
        """Nothing in the lower ones is random. But what a soft prompt has folded depends on the weights above it."""
        for attached in self.frozen:
            attached.begin_step(None)
        self.top.begin_step(seed)

    def saved(self) -> dict[str, torch.Tensor]:
        """The upper technique's tensors."""
        return self.top.saved()

    def save(self, folder: Path, base: str) -> None:
        """Writes the upper technique."""
        self.top.save(folder, base)

    def rows(self) -> RowChanges:
        """What all of them do."""
        return together(attached.rows() for attached in (*self.frozen, self.top))

    def merge(self) -> None:
        """Folds the upper technique into what stands beneath it."""
        self.top.merge()

    def withdraw(self) -> None:
        """Takes all of them out, the upper one first."""
        for attached in (self.top, *reversed(self.frozen)):
            attached.withdraw()

    def detach(self) -> None:
        """Takes the upper technique out."""
        self.top.detach()


def start(parent: Run, technique: str | Technique | None, onto: str | None, settings: Settings) -> Start:
    """A new round with what follows from its parent filled in: the technique where none is chosen, how it goes on where
    the technique is the same, and in which form the base is stored.

    Raises an error for what cannot be, with what can.
    """
    lineage.require_finished(parent)
    noted = parent.manifest["technique"]
    own = techniques.build(noted["name"], noted["settings"])
    if technique is None or technique == own.name:
        chosen = own
    else:
        chosen = techniques.build(technique) if isinstance(technique, str) else technique
    if onto is None and chosen.name != own.name:
        raise UsageError(
            f"{parent.folder} was tuned with {own.name}, and {chosen.name} cannot train that on; choose --onto merge "
            f"({own.name} becomes part of the base's weights) or --onto stack ({own.name} stays beneath, frozen)"
        )
    onto = onto or CONTINUE
    if onto not in WAYS:
        raise unknown("way to go on from a run (--onto)", onto, WAYS)
    if onto == CONTINUE:
        _require_same(parent, own, chosen)
    return Start(parent, onto, chosen, _checked(lineage.chain(parent), onto, own, chosen, settings))


def _require_same(parent: Run, own: Technique, chosen: Technique) -> None:
    """Continuing keeps the technique and all of its settings but the learning rate."""
    if chosen.name != own.name:
        raise UsageError(
            f"{parent.folder} was tuned with {own.name}, which {chosen.name} cannot continue; leave --technique out, "
            "or choose --onto merge or --onto stack"
        )
    was, now = asdict(own), asdict(chosen)  # type: ignore[call-overload]
    changed = [name for name in was if was[name] != now[name] and name != "learning_rate"]
    if changed:
        name = changed[0]
        raise UsageError(
            f"{name} is {now[name]!r}, but {parent.folder} was tuned with {was[name]!r}, and continuing keeps what the "
            f"technique is; leave {name} out, or choose --onto merge or --onto stack for a new {chosen.name}"
        )


def _checked(rounds: list[Run], onto: str, own: Technique, chosen: Technique, settings: Settings) -> Settings:
    """The settings, with the form of the base; an error where the technique cannot stand on these rounds."""
    if onto == MERGE and "mergeable" not in own.capabilities:
        raise TechniqueError(
            f"{own.name} cannot be merged into the base's weights; keep it beneath with --onto stack, or train it on "
            "with --onto continue"
        )
    if onto != MERGE:
        was = rounds[-1].manifest["settings"].get("quantize")
        if settings.quantize not in (None, was):
            raise UsageError(
                f"quantize is {settings.quantize!r}, but with --onto {onto} the base stays as {rounds[-1].folder} had "
                "it; leave it out, or choose --onto merge"
            )
        settings = replace(settings, quantize=was)
    if onto != CONTINUE:
        for layer in _layers([*rounds, None], [*_ways(rounds), onto]):
            if not layer.folded:
                _require_room(chosen, layer.technique)
    return settings


def _require_room(new: Technique, old: type[Technique]) -> None:
    """Raises `TechniqueError` where one technique cannot stand on top of another."""
    positions = {"virtual_tokens", "kv_prefix"}
    if "quantizes_base" in new.capabilities:
        why = "it stores the base in 4 bits, which has to be done before anything stands in it"
    elif "trains_base" in new.capabilities and "mergeable" in old.capabilities:
        why = f"it trains every weight, those of {old.name} too"
    elif new.capabilities & positions and old.capabilities & positions:
        why = "both put positions before the sequence"
    else:
        return
    ways = (
        "choose --onto merge" if "mergeable" in old.capabilities else "choose another technique, or start from the base"
    )
    raise TechniqueError(f"{new.name} cannot stand on top of {old.name}: {why}; {ways}")


def beneath(run: Run) -> list[Layer]:
    """What stands under a run's own technique, the lowest first. Raises `RunError` where an earlier round is gone or
    changed."""
    rounds = lineage.chain(run)
    return _layers(rounds, _ways(rounds))


def _ways(rounds: Sequence[Run]) -> list[str]:
    return [str(lineage.way(later)) for later in rounds[1:]]


def _layers(rounds: Sequence[Run | None], ways: Sequence[str]) -> list[Layer]:
    """The rounds that a later one did not continue. What can be folded is, up to the last that was merged."""
    kept = [(run, way) for (run, _), way in zip(pairwise(rounds), ways, strict=True) if way != CONTINUE]
    merged = max((place for place, (_, way) in enumerate(kept) if way == MERGE), default=-1)
    found = []
    for place, (run, _) in enumerate(kept):
        assert run is not None
        technique = techniques.get(run.manifest["technique"]["name"])
        foldable = "mergeable" in technique.capabilities and place <= merged
        found.append(Layer(run, technique, foldable or "trains_base" in technique.capabilities))
    return found


def stores_base(run: Run) -> bool:
    """Whether a round decides in which form the base is stored: the first one does, and one that started on a merged
    base, with those that continued them. What was stacked took the base as it was."""
    place = run
    while lineage.way(place) == CONTINUE:
        before = lineage.parent(place)
        assert before is not None
        place = before
    return lineage.way(place) != STACK


def base_of(parent: Run, technique: Technique, listener: Listener) -> Base:
    """The base of a lineage, for a new round of this technique; `RunError` where it is another one by now."""
    earlier = [techniques.get(run.manifest["technique"]["name"]) for run in lineage.chain(parent)]
    return bases.load_again(parent, technique, listener, earlier)


def lay(anatomy: Anatomy, layers: Sequence[Layer], listener: Listener) -> list[Attached]:
    """Builds what stands beneath a round and returns those that are not folded. Nothing of it is trained."""
    standing: list[Attached] = []
    for layer in layers:
        if stores_base(layer.run):
            settings = Settings(**layer.run.manifest["settings"])
            bases.quantize_where_asked(anatomy, layer.technique, settings, listener)
        attached = layer.technique.restore(anatomy, layer.run.artifact)
        for parameter in attached.parameters.values():
            parameter.requires_grad_(False)
        if layer.folded:
            attached.merge()
        else:
            standing.append(attached)
    for attached in standing:
        attached.begin_step(None)  # what it folded before may stand on weights that have changed
    return standing


def attach(
    run: Run,
    layers: Sequence[Layer],
    anatomy: Anatomy,
    technique: Technique,
    settings: Settings,
    encode: Encode,
    listener: Listener,
) -> Attached:
    """Puts a run's technique into its base as it is before the first step, with the `layers` beneath it."""
    standing = lay(anatomy, layers, listener)
    if stores_base(run):
        _tell_rounding(layers, technique, settings, listener)
        bases.quantize_where_asked(anatomy, technique, settings, listener)
    if lineage.way(run) == CONTINUE:
        before = lineage.parent(run)
        assert before is not None
        own = technique.restore(anatomy, before.artifact)
    else:
        round_number = lineage.number(run)
        seed = settings.seed if round_number == 1 else derive(settings.seed, "round", round_number)
        own = technique.attach(anatomy, seed, encode)
    return Stacked(own, standing) if standing else own


def head_of(run: Run, anatomy: Anatomy, artifact: Path) -> Readout | None:
    """The linear head that a run left, None where its task has none."""
    readout = readout_of(tasks.from_json(run.manifest["task"]), anatomy, 0)
    if readout is not None:
        headed.fill(readout, artifact)
    return readout


def same_head(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two tasks, as manifests keep them, have the same linear head: the same classes, looked for in the same
    place. What an example weighs does not matter."""
    parts = ("name", "labels", "types", "several", "pooling")
    return tasks.has_head(one["name"]) and all(one.get(part) == other.get(part) for part in parts)


def take_head(run: Run, readout: Readout) -> bool:
    """Gives a round's head its parent's weights where both learn the very same classes; whether it did."""
    before = lineage.parent(run)
    if before is None or not same_head(before.manifest["task"], run.manifest["task"]):
        return False
    headed.fill(readout, before.artifact)
    return True


def merged(run: Run, layers: Sequence[Layer], anatomy: Anatomy, listener: Listener) -> None:
    """Makes what a run and the `layers` beneath it learned part of the base's weights; a base in 4 bits becomes an
    ordinary one with the weights that it computed with. Raises `TechniqueError` where one of them is no weights."""
    for each in (*layers, Layer(run, techniques.get(run.manifest["technique"]["name"]), folded=True)):
        if "mergeable" not in each.technique.capabilities:
            raise TechniqueError(
                f"{each.run.folder} was tuned with {each.technique.name}, which adds to the model what no weight of "
                "the base can hold; serve it with `heptune serve`, or export it as an adapter (--to peft, or "
                "adapterhub for adapters)"
            )
        if stores_base(each.run):
            settings = Settings(**each.run.manifest["settings"])
            bases.quantize_where_asked(anatomy, each.technique, settings, listener)
        each.technique.restore(anatomy, each.run.artifact).merge()


def restore(run: Run, layers: Sequence[Layer], anatomy: Anatomy, artifact: Path, listener: Listener) -> None:
    """Puts a run's artifact into its base, with the `layers` beneath it."""
    technique = techniques.get(run.manifest["technique"]["name"])
    standing = lay(anatomy, layers, listener)
    if stores_base(run):
        bases.quantize_where_asked(anatomy, technique, Settings(**run.manifest["settings"]), listener)
    technique.restore(anatomy, artifact)
    for attached in standing:
        attached.begin_step(None)


def belongs_on(base: str, layers: Sequence[Layer]) -> str:
    """What an artifact says that it was trained on: the base, or the run without which it means nothing."""
    return str(layers[-1].run.folder.resolve()) if layers else base


def _tell_rounding(layers: Sequence[Layer], technique: Technique, settings: Settings, listener: Listener) -> None:
    if layers and (settings.quantize is not None or "quantizes_base" in technique.capabilities):
        text = "the merged weights are rounded to 4 bits, which loses part of what the rounds before learned"
        listener(Note(f"{text}; the validation before the first step shows how much", "warning"))


def described(made: Start, replayed: list[dict[str, Any]], share: float, guard: float | None) -> dict[str, Any]:
    """What the manifest of a new round keeps of the rounds before it."""
    found = lineage.link(made.parent, made.onto)
    found |= {"guard": guard}
    return found | ({"replay": {"share": share, "rounds": replayed}} if share else {})
