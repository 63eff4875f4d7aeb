"""The tuned models that are served: each by its name, and as many as can be on one base.

What a run's technique does beside the base's weights it does to its own rows of a batch, whatever else is in it (see
`models/mixture.py`). A run that needs weights of its own gets a model of its own in memory: where full tuning or
freezing trained them, or where 4 bits were made of weights into which earlier rounds had been merged. A run on a base
in 4 bits beside others on the same one in floating point uses 4-bit copies of its linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from heptune import tasks, techniques
from heptune.core.errors import RunError, UsageError
from heptune.core.events import Listener, Note, ignore
from heptune.core.registry import nearest
from heptune.data.record import Message
from heptune.engine.forward import Forward
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy, Placement, dissect
from heptune.models.load import Base
from heptune.models.mixture import Mixture, RowChanges, SiteChange, together
from heptune.models.quantization import QuantizedLinear
from heptune.models.readout import Readout
from heptune.runs import lineage
from heptune.runs.run import Run
from heptune.scoring.calibration import UNCALIBRATED, Calibration
from heptune.scoring.generate import placed, prompt_ids
from heptune.scoring.score import Scorer
from heptune.service.engine import Engine, Room
from heptune.tasks.chat import Chat
from heptune.tasks.complete import Complete
from heptune.tasks.template import ChatTemplate
from heptune.techniques._contract import Attached
from heptune.tuning import base as bases
from heptune.tuning import rounds
from heptune.tuning.training import SCORING_ROWS

# Tokens of a text that is classified or tagged by the base itself or by a run that does not say.
MAX_LENGTH = 2048


@dataclass(frozen=True, eq=False)
class Served:
    """One model that can be asked: a run, or (without one) the base. `rows` is what it does to its rows."""

    name: str
    engine: Engine
    rows: RowChanges
    template: ChatTemplate
    scorer: Scorer
    task: tasks.Task | None = None
    run: Run | None = None
    calibration: Calibration = UNCALIBRATED
    readout: Readout | None = None

    @property
    def speaks(self) -> bool:
        """Whether it says anything: an encoder does not."""
        return self.engine.generates

    @property
    def technique(self) -> str:
        """The technique's name, '' for the base."""
        return "" if self.run is None else self.run.manifest["technique"]["name"]

    @property
    def max_positions(self) -> int | None:
        """The longest prompt and reply together, in tokens; None where the base does not say."""
        limit = self.engine.anatomy.shape.max_positions
        return None if limit is None else limit - self.rows.positions - self.rows.inner

    def chat_tokens(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        """A conversation up to where the assistant begins to speak, with what stands before it (ids below zero)."""
        asked = self.task.messages(messages) if isinstance(self.task, Chat) else list(messages)
        return self._with_front(prompt_ids(self._placement, self.template, asked, tools))

    def text_tokens(self, text: str) -> list[int]:
        """A text that is to go on, in the same way."""
        return self.plain_tokens(Complete().prompt(text, self.template))

    def plain_tokens(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that are to go on, in the same way."""
        return self._with_front(placed(self._placement, tokens, 1))

    @property
    def _placement(self) -> Placement:
        return Placement(self.rows.front, self.rows.inner)

    def _with_front(self, tokens: list[int]) -> list[int]:
        if not any(token >= 0 for token in tokens):
            raise UsageError("the prompt has no tokens; write something")
        return tokens if self.rows.inner else [*(-1 - j for j in range(self.rows.positions)), *tokens]

    def alone(self, work: Callable[[], Any]) -> Future[Any]:
        """Runs something between two steps, with this model as the base's only one."""

        def on_it() -> Any:
            self.engine.require(self)
            forward = self.engine.forward
            forward.readout = self.readout
            try:
                with self.engine.mixture.alone(self.rows):
                    return work()
            finally:
                forward.readout = None

        return self.engine.between_steps(on_it)


@dataclass
class _Ground:
    """A base in memory and the models on it. `sites`: its linear layers as they are when no technique is in it."""

    base: Base
    anatomy: Anatomy
    engine: Engine
    in_4_bits: bool
    models: dict[str, Served] = field(default_factory=dict)
    copies: dict[str, QuantizedLinear] = field(default_factory=dict)

    def rows(self) -> list[RowChanges]:
        return [served.rows for served in self.models.values()]


class Fleet:
    """Everything that is served. Loading and unloading are for one thread at a time."""

    def __init__(self, room: Room | None = None, listener: Listener = ignore) -> None:
        self.room, self.listener = room or Room(), listener
        self.models: dict[str, Served] = {}
        self._grounds: dict[tuple[Any, ...], _Ground] = {}
        self._started = False

    @property
    def engines(self) -> list[Engine]:
        """One for each base in memory."""
        return [ground.engine for ground in self._grounds.values()]

    @property
    def lives(self) -> bool:
        """Whether every engine's thread runs."""
        return self._started and all(engine.lives for engine in self.engines)

    def start(self) -> None:
        """Begins to answer."""
        self._started = True
        for engine in self.engines:
            engine.start()

    def stop(self) -> None:
        """Ends; whatever is unfinished ends as cancelled."""
        self._started = False
        for engine in self.engines:
            engine.stop()

    def get(self, name: str) -> Served:
        """The model of this name. Raises `UsageError` where there is none."""
        found = self.models.get(name)
        if found is None:
            close = nearest(name, self.models)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise UsageError(f"there is no model {name!r}; {hint}served: {', '.join(self.models)}")
        return found

    def load_all(self, runs: Mapping[str, Path]) -> None:
        """Loads runs by their names, and their bases. Where all of a base's runs want it in 4 bits, it is."""
        found = {name: _Chain.of(Run(folder)) for name, folder in runs.items()}
        for name, chain in found.items():
            same = [other for other in found.values() if other.key == chain.key]
            self._load(name, chain, all(other.in_4_bits for other in same))

    def load(self, name: str, folder: Path) -> Served:
        """Loads one more run. Raises `UsageError` where the name is taken, `RunError` where it cannot be loaded."""
        if name in self.models:
            raise UsageError(f"there is a model {name!r} already; unload it first, or choose another name")
        chain = _Chain.of(Run(folder))
        return self._load(name, chain, chain.in_4_bits and chain.key not in self._grounds)

    def unload(self, name: str) -> None:
        """Lets go of a run; its replies end as cancelled. Raises `UsageError` for a base, and where there is none."""
        served = self.get(name)
        if served.run is None:
            raise UsageError(f"{name} is a base, which stays as long as the server runs")
        key, ground = next((k, g) for k, g in self._grounds.items() if name in g.models)
        del self.models[name], ground.models[name]
        engine = ground.engine
        self._between(engine, lambda: engine.forget(served, ground.rows()))
        if not ground.models:
            engine.stop()
            del self._grounds[key]

    def _between(self, engine: Engine, work: Callable[[], Any]) -> Any:
        return engine.between_steps(work).result() if self._started else work()

    def _load(self, name: str, chain: _Chain, in_4_bits: bool) -> Served:
        known = chain.key in self._grounds
        ground = self._grounds.get(chain.key) or self._ground(chain, in_4_bits)
        if ground.in_4_bits and not chain.in_4_bits and not chain.own:
            raise RunError(
                f"{chain.run.folder} was tuned on the base in floating point, and the server has it in 4 bits; start "
                "the server with this run among the others"
            )

        def placed_on_base() -> Served:
            served = _placed(name, chain, ground, self.listener)
            ground.models[name] = served
            ground.engine.learn([(served, served.rows)], ground.rows())
            return served

        served = placed_on_base() if not known else self._between(ground.engine, placed_on_base)
        if not known:
            self._grounds[chain.key] = ground
            if self._started:
                ground.engine.start()
        self.models |= {n: s for n, s in ground.models.items() if n not in self.models}
        return served

    def _ground(self, chain: _Chain, in_4_bits: bool) -> _Ground:
        kinds = [layer.technique for layer in chain.beneath]
        base = bases.load_again(chain.run, chain.technique, self.listener, kinds)
        anatomy = dissect(base.model)
        if in_4_bits and not chain.own:
            bases.quantize_where_asked(anatomy, chain.technique, chain.settings_of_4_bits, self.listener)
        engine = Engine(Forward(anatomy, listener=self.listener), Mixture(anatomy), self.room)
        ground = _Ground(base, anatomy, engine, in_4_bits and not chain.own)
        if not chain.own:
            rows = RowChanges()
            template = bases.template_of(base)
            scorer = Scorer(engine.forward, template, MAX_LENGTH, SCORING_ROWS)
            name = Path(base.name).name
            ground.models[name] = Served(name, engine, rows, template, scorer)
            engine.learn([(ground.models[name], rows)], [rows])
            if name in self.models:
                self.listener(Note(f"another {name} is served already; this base has no name of its own", "warning"))
        return ground


@dataclass(frozen=True)
class _Chain:
    """A run with what stands beneath it, and which model in memory it can be on."""

    run: Run
    technique: type
    beneath: tuple[rounds.Layer, ...]
    own: bool
    in_4_bits: bool
    key: tuple[Any, ...]

    @classmethod
    def of(cls, run: Run) -> _Chain:
        run.artifact  # noqa: B018  (a run without one is refused before anything is loaded)
        beneath = tuple(rounds.beneath(run))
        technique = techniques.get(run.manifest["technique"]["name"])
        kinds = [*(layer.technique for layer in beneath), technique]
        asking = [
            _asks_for_4_bits(each, kind)
            for each, kind in zip([*(layer.run for layer in beneath), run], kinds, strict=True)
        ]
        own = any("trains_base" in kind.capabilities for kind in kinds) or any(asking[1:])
        dtype = bases.dtype(frozenset().union(*(kind.capabilities for kind in kinds)))
        first = str(run.folder.resolve()) if own else ""
        key = (run.manifest["base"]["fingerprint"], str(dtype), first)
        return cls(run, technique, beneath, own, any(asking), key)

    @property
    def settings_of_4_bits(self) -> Settings:
        """Settings that ask for 4 bits."""
        return Settings(**{**self.run.manifest["settings"], "quantize": "nf4"})


def _asks_for_4_bits(run: Run, technique: type) -> bool:
    quantized = run.manifest["settings"].get("quantize") is not None or "quantizes_base" in technique.capabilities  # type: ignore[attr-defined]
    return quantized and rounds.stores_base(run)


def _placed(name: str, chain: _Chain, ground: _Ground, listener: Listener) -> Served:
    """A run on a base in memory. The base's modules are what they were when this ends."""
    run, anatomy = chain.run, ground.anatomy
    with _linear_layers(chain, ground, listener) as replaced:
        if chain.own:
            standing = rounds.lay(anatomy, chain.beneath, listener)
            settings = Settings(**run.manifest["settings"])
            if rounds.stores_base(run):
                bases.quantize_where_asked(anatomy, chain.technique, settings, listener)
        else:  # what was merged does the same to its own rows
            standing = [layer.technique.restore(anatomy, layer.run.artifact) for layer in chain.beneath]
        attached: list[Attached] = [*standing, chain.technique.restore(anatomy, run.artifact)]  # type: ignore[attr-defined]
        for each in attached:
            each.begin_step(None)
        rows = together([replaced, *(each.rows() for each in attached)])
        for each in reversed(attached):
            each.withdraw()
    template = bases.template_of(ground.base, run.manifest["template"])
    max_length = Settings(**run.manifest["settings"]).max_length
    return Served(
        name,
        ground.engine,
        rows,
        template,
        Scorer(ground.engine.forward, template, max_length, SCORING_ROWS),
        tasks.from_json(run.manifest["task"]),
        run,
        Calibration.of(run.folder),
        rounds.head_of(run, anatomy, run.artifact),
    )


@contextmanager
def _linear_layers(chain: _Chain, ground: _Ground, listener: Listener) -> Iterator[RowChanges]:
    """Inside the block the base is as the run had it: in 4 bits, where it had. Gives what the run's rows do first."""
    if chain.own or not chain.in_4_bits or ground.in_4_bits:
        yield RowChanges()
        return
    anatomy = ground.anatomy
    floating: dict[str, nn.Module] = {site.path: anatomy.module(site) for site in anatomy.select(["linear"])}
    if not ground.copies:
        listener(Note("runs on 4 bits and on floating point share a base: it is in memory in both forms"))
        ground.copies = {path: QuantizedLinear(module) for path, module in floating.items()}
    try:
        for path, module in ground.copies.items():
            anatomy.model.set_submodule(path, module)
        yield RowChanges({path: (_instead(module),) for path, module in ground.copies.items()})
    finally:
        for path, original in floating.items():
            anatomy.model.set_submodule(path, original)


def _instead(module: nn.Module) -> SiteChange:
    return lambda x, y: module(x)


def names_of(runs: Sequence[str]) -> dict[str, Path]:
    """NAME=RUN or RUN, whose folder's name it then has. Raises `UsageError` for a name that is given twice."""
    found: dict[str, Path] = {}
    for each in runs:
        name, equals, folder = each.partition("=")
        path = Path(folder) if equals and not Path(each).exists() else Path(each)
        name = name if equals and not Path(each).exists() else path.resolve().name
        if not name:
            raise UsageError(f"{each!r} has no name before its =; write NAME=RUN")
        if name in found:
            raise UsageError(f"two runs are called {name}; give one of them a name: NAME={path}")
        if not lineage.is_run(path):
            raise RunError(f"{path} is no run directory; `heptune runs` lists those below a folder")
        found[name] = path
    return found
