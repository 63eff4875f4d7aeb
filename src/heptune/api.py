"""The verbs: plan, tune, resume, evaluate, open, load, check, explain. The command line calls nothing else."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import heptune
from heptune import tasks, techniques
from heptune.core.errors import BaseModelError, DataError, HeptuneError, RunError, UsageError
from heptune.core.events import Event, Listener, Note, Progress, ignore
from heptune.data.check import CheckReport, Lengths, check_labels
from heptune.data.check import check as check_data
from heptune.data.parts import DataOptions, DataParts, read_again, read_files
from heptune.data.readers import read
from heptune.data.record import Message, Record
from heptune.data.splits import sample
from heptune.engine.artifact import keep
from heptune.engine.forward import Forward, require_positions
from heptune.engine.loop import Training, Validation, batches_of, steps_in_time
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy, dissect
from heptune.models.load import Base, load_base, load_tokenizer
from heptune.models.quantization import quantize, require_library
from heptune.runs.files import write_json
from heptune.runs.run import EventLog, Run, new_name
from heptune.scoring.evaluation import (
    ChatScores,
    Evaluation,
    chat_scores,
    classification,
    conversation,
    last_questions,
    replies_shown,
    require_examples,
)
from heptune.scoring.generate import Sampling, reply
from heptune.scoring.score import Scorer, normalised
from heptune.scoring.validate import validation
from heptune.tasks.chat import Chat
from heptune.tasks.classify import Classify
from heptune.tasks.template import ChatTemplate
from heptune.techniques._contract import Technique

# Rows of one forward pass when nothing is differentiated.
SCORING_ROWS = 4096


def tune(
    base: str,
    data: str | Path,
    *,
    technique: str | Technique = "lora",
    task: str | None = None,
    out: str | Path | None = None,
    options: DataOptions | None = None,
    instruction: str | None = None,
    system: str | None = None,
    listener: Listener = ignore,
    **settings: Any,
) -> Run:
    """Tunes a base on a data set and returns the run.

    `technique` is a name or settings, as in `heptune.Lora(rank=16)`. `task` is found from the data where it is None.
    `out` is the new run directory (default: runs/TECHNIQUE-N). `instruction` stands before every text of classify,
    `system` before conversations of chat. `settings` are those of `heptune.engine.settings.Settings`, e.g. epochs=2.
    """
    chosen = techniques.build(technique) if isinstance(technique, str) else technique
    knobs = Settings.from_values(settings)
    _check_quantization(chosen, knobs)
    options = options or DataOptions()
    files = read_files(data, options, listener)
    name = task or tasks.choose(files.train.kind)
    parts = files.cut(options, knobs.seed)
    goal = tasks.pose(name, parts.train, instruction, system)
    if isinstance(goal, Classify):
        check_labels(goal.labels, parts.validation, parts.path("validation"))
        check_labels(goal.labels, parts.test, parts.path("test"))
    for part, count in parts.leaked().items():
        if count:
            text = f"{count} records of the {part} part also stand in the training part; its scores will flatter"
            listener(Note(f"{text}. `heptune check` names the lines", "warning"))
    folder = Path(out) if out is not None else new_name(Path("runs"), chosen.name)
    loaded = _load(base, chosen, listener)
    template = ChatTemplate(loaded.tokenizer)
    if template.is_default:
        listener(Note(f"{base} has no chat template; Heptune's default (User: ... Assistant: ...) is used", "warning"))
    manifest = {
        "heptune": heptune.__version__,
        "status": "new",
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "base": {
            "name": str(Path(base).expanduser().resolve()) if Path(base).expanduser().exists() else base,
            "from": loaded.folder_or_id,
            "revision": loaded.revision,
            "fingerprint": loaded.fingerprint,
        },
        "technique": {"name": chosen.name, "settings": asdict(chosen)},  # type: ignore[call-overload]
        "task": goal.to_json(),
        "template": template.text,
        "data": parts.source,
        "split": parts.split.to_json(),
        "settings": asdict(knobs),
        "versions": _versions(),
        "threads": torch.get_num_threads(),
    }
    run = Run.create(folder, manifest)
    try:
        return _train(run, loaded, chosen, goal, template, parts, knobs, listener)
    except HeptuneError:
        if run.manifest["status"] == "new":  # the technique does not fit the base, or the like: nothing to resume
            run.discard()
        raise


def resume(folder: str | Path, *, listener: Listener = ignore) -> Run:
    """Continues an interrupted run from its newest checkpoint, to the same bits as without the interruption.

    Raises `RunError` when the run is finished, or the base or the data are no longer those it began with.
    """
    run = Run(folder)
    manifest = run.manifest
    if manifest["status"] == "finished":
        raise RunError(f"{folder} is finished; look at it with `heptune eval {folder}`")
    chosen = techniques.build(manifest["technique"]["name"], manifest["technique"]["settings"])
    parts = read_again(manifest["data"], manifest["split"])
    goal = tasks.from_json(manifest["task"])
    loaded = _load(manifest["base"]["name"], chosen, listener)
    _same_base(loaded, manifest)
    changed = {k: (v, _versions().get(k)) for k, v in manifest["versions"].items() if _versions().get(k) != v}
    if changed:
        text = ", ".join(f"{name} {was} -> {now}" for name, (was, now) in changed.items())
        listener(Note(f"this run began with other versions ({text}); its bits may differ", "warning"))
    if manifest["threads"] != torch.get_num_threads():
        text = f"{manifest['threads']} threads, now there are {torch.get_num_threads()}"
        listener(Note(f"this run began with {text}; its last bits may differ", "warning"))
    template = ChatTemplate(loaded.tokenizer, manifest["template"])
    return _train(run, loaded, chosen, goal, template, parts, Settings(**manifest["settings"]), listener)


def _train(
    run: Run,
    base: Base,
    technique: Technique,
    task: Classify | Chat,
    template: ChatTemplate,
    parts: DataParts,
    settings: Settings,
    listener: Listener,
) -> Run:
    log = EventLog(run.folder / "events.jsonl")

    def tell(event: Event) -> None:
        if not isinstance(event, Progress):
            log(event)
        listener(event)

    with run.locked():
        examples = tasks.encode(task, parts.train, template, settings.max_length, tell)
        anatomy = dissect(base.model)
        _quantize(anatomy, technique, settings, listener)
        forward = Forward(anatomy, settings.recompute, tell)
        attached = technique.attach(anatomy, settings.seed, template.encode)
        require_positions(anatomy, examples)
        scorer = Scorer(forward, template, settings.max_length, SCORING_ROWS)
        judge = _judge(task, scorer, parts.validation, settings, listener)
        steps = run.manifest.get("steps")
        if steps is None:
            steps = batches_of(examples, settings).steps(settings.epochs)
            steps = min(steps, settings.max_steps or steps)
            if settings.max_minutes is not None:
                steps = steps_in_time(forward, attached, examples, settings, judge, steps)
            run.update(steps=steps, trainable=technique.cost(anatomy.shape).trainable)
        run.update(status="running")
        training = Training(
            folder=run.folder,
            base=base.name,
            forward=forward,
            attached=attached,
            examples=examples,
            describe=parts.place,
            settings=settings,
            peak_learning_rate=settings.learning_rate or technique.learning_rate,
            steps=steps,
            validation=judge,
            listener=tell,
        )
        try:
            outcome = training.run()
        except HeptuneError as error:
            run.update(status="failed", error=str(error))
            raise
        if outcome.reason == "interrupted":
            run.update(status="interrupted")
            return run
        state = outcome.state
        artifact = keep(run.folder, attached, base.name, state.best_step, state.step)
        run.update(
            status="finished",
            result={
                "reason": outcome.reason,
                "steps": state.step,
                "time_s": state.time_s,
                "tokens": state.tokens,
                "supervised_tokens": state.supervised_tokens,
                "peak_memory_bytes": outcome.peak_bytes,
                "artifact_bytes": sum(f.stat().st_size for f in artifact.rglob("*") if f.is_file()),
                "best_step": state.best_step,
                "first_validation": state.first_metrics,
                "best_validation": state.best_metrics,
            },
        )
    return run


def evaluate(
    folder: str | Path,
    data: str | Path | None = None,
    *,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    listener: Listener = ignore,
) -> Evaluation:
    """Scores a finished run on held-out data beside its baselines; the result is also kept in the run directory.

    `data` is a file; without it the run's own test part (or, where it has none, its validation part) is taken. `limit`
    is the most examples that are scored.
    """
    run = Run(folder)
    manifest = run.manifest
    artifact = run.artifact
    task = tasks.from_json(manifest["task"])
    parts = read_again(manifest["data"], manifest["split"])
    part, records = parts.held_out()
    if data is not None:
        part, records = str(data), list(read(data, columns=columns).records)
    require_examples(records, part)
    if isinstance(task, Classify):
        check_labels(task.labels, records, data)
    if limit is not None and limit < len(records):
        records = [records[i] for i in sample(records, range(len(records)), limit, manifest["settings"]["seed"])]
    technique = techniques.get(manifest["technique"]["name"])
    base = load_base(manifest["base"]["name"], dtype=_dtype(technique.capabilities), listener=listener)
    _same_base(base, manifest)
    anatomy = dissect(base.model)
    template = ChatTemplate(base.tokenizer, manifest["template"])
    settings = Settings(**manifest["settings"])
    scorer = Scorer(Forward(anatomy, listener=listener), template, settings.max_length, SCORING_ROWS)

    def restore() -> None:
        _quantize(anatomy, technique, settings, listener)
        technique.restore(anatomy, artifact)

    if isinstance(task, Classify):
        base_log_p = scorer.labels(task, records, "scoring the untouched base", listener)
        restore()
        tuned_log_p = scorer.labels(task, records, "scoring the tuned model", listener)
        result = classification(task, part, records, parts.train, base_log_p, tuned_log_p, settings.seed)
    else:
        result = _evaluate_chat(task, part, records, scorer, anatomy, restore, settings, listener)
    (run.folder / "evaluations").mkdir(exist_ok=True)
    write_json(run.folder / "evaluations" / f"{time.strftime('%Y%m%d-%H%M%S')}.json", result.to_json())
    return result


def _evaluate_chat(
    task: Chat,
    part: str,
    records: list[Record],
    scorer: Scorer,
    anatomy: Anatomy,
    restore: Callable[[], None],
    settings: Settings,
    listener: Listener,
) -> Evaluation:
    examples = [e for i, r in enumerate(records) for e in task.encode(r, i, scorer.template, settings.max_length)]
    scored = [example for example in examples if example.targets]
    if not scored:
        raise DataError(f"no reply of {part} fits into {settings.max_length} tokens; nothing can be scored")
    questions = last_questions(task, records, count=3)
    sampling = Sampling(max_tokens=96)

    def answer(messages: list[Message]) -> str:
        try:
            return reply(anatomy, scorer.template, messages, sampling)
        except BaseModelError as error:  # too long a conversation: the scores are worth showing all the same
            return f"({error})"

    before = chat_scores(scorer, scored, "scoring the untouched base", listener)
    base_replies = [answer(question) for question, _ in questions]
    restore()
    after: ChatScores = chat_scores(scorer, scored, "scoring the tuned model", listener)
    shown = replies_shown(questions, base_replies, answer)
    return conversation(task, part, before, after, shown, sum(e.cut > 0 for e in examples), settings.seed)


@dataclass(frozen=True)
class Tuned:
    """A run's result, loaded and ready for use."""

    run: Run
    task: Classify | Chat
    anatomy: Anatomy
    template: ChatTemplate
    scorer: Scorer

    @property
    def model(self) -> transformers.PreTrainedModel:
        """The base with the technique inside."""
        return self.anatomy.model

    def classify(self, text: str) -> dict[str, float]:
        """The probability of each label, likeliest first. Raises `RunError` when the run learned another task."""
        if not isinstance(self.task, Classify):
            raise RunError(f"{self.run.folder} learned {self.task.name}, not classify; ask it with reply()")
        log_p = self.scorer.labels(self.task, [Record(1, text=text, label=self.task.labels[0])], "scoring")
        probabilities = np.exp(normalised(log_p))[0]
        pairs = zip(self.task.labels, map(float, probabilities), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    def reply(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """The reply to a conversation; `on_text` receives it as it grows."""
        asked = self.task.messages(messages) if isinstance(self.task, Chat) else list(messages)
        return reply(self.anatomy, self.template, asked, sampling or Sampling(), on_text)


def open_run(folder: str | Path, *, listener: Listener = ignore) -> Tuned:
    """Loads a run's base and artifact for use."""
    run = Run(folder)
    artifact = run.artifact
    manifest = run.manifest
    technique = techniques.get(manifest["technique"]["name"])
    base = load_base(manifest["base"]["name"], dtype=_dtype(technique.capabilities), listener=listener)
    _same_base(base, manifest)
    settings = Settings(**manifest["settings"])
    anatomy = dissect(base.model)
    _quantize(anatomy, technique, settings, listener)
    forward = Forward(anatomy, listener=listener)
    technique.restore(anatomy, artifact)
    template = ChatTemplate(base.tokenizer, manifest["template"])
    scorer = Scorer(forward, template, settings.max_length, SCORING_ROWS)
    return Tuned(run, tasks.from_json(manifest["task"]), anatomy, template, scorer)


def load(base: str, folder: str | Path, *, listener: Listener = ignore) -> transformers.PreTrainedModel:
    """A base with an artifact on it, as a transformers model. The artifact is Heptune's own, PEFT's (LoRA, prefix,
    prompt, P-Tuning) or AdapterHub's (bottleneck adapters).

    The model takes plain token ids. Only P-Tuning's pseudo tokens behind the text have to stand among them (ids -1, -2,
    ..., those in front first), since a model cannot know where the answer begins; `open_run` puts them there.
    """
    path = Path(folder)
    technique = techniques.recognise(path)
    loaded = load_base(base, dtype=_dtype(technique.capabilities), listener=listener)
    technique.restore(dissect(loaded.model), path)
    return loaded.model


def explain(technique: str) -> str:
    """The technique's card."""
    return techniques.card(technique)


@dataclass(frozen=True)
class Rendered:
    """An example exactly as the model sees it: pieces of text, and whether each is supervised."""

    line: int
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Check:
    """What was understood of a data set, what is wrong with it, and two examples rendered.

    `compared_with` is the evaluation file in which leaked examples were looked for.
    """

    report: CheckReport
    task: str | None
    compared_with: Path | None
    rendered: tuple[Rendered, ...]


def check(
    data: str | Path,
    *,
    base: str = "smollm2-135m",
    task: str | None = None,
    options: DataOptions | None = None,
    instruction: str | None = None,
    system: str | None = None,
    max_length: int = Settings.max_length,
    listener: Listener = ignore,
) -> Check:
    """Looks at a data set with the eyes of `base`'s tokenizer. Only the tokenizer is loaded, no weights."""
    options = options or DataOptions()
    files = read_files(data, options, listener)
    dataset, evaluation = files.train, files.test or files.validation
    path = None if evaluation is None else evaluation.path
    try:
        goal = tasks.pose(task or tasks.choose(dataset.kind), dataset.records, instruction, system)
    except DataError as error:
        report = check_data(dataset, evaluation=evaluation, max_length=max_length, listener=listener)
        if report.pointless:
            return Check(report, None, path, ())
        raise error
    template = ChatTemplate(load_tokenizer(base, listener=listener))

    def measure(record: Record) -> list[Lengths]:
        return [Lengths(len(e.tokens), e.targets, e.cut) for e in goal.encode(record, 0, template, max_length)]

    report = check_data(dataset, evaluation=evaluation, measure=measure, max_length=max_length, listener=listener)
    rendered = tuple(_render(record, goal, template, max_length) for record in dataset.records[:2])
    return Check(report, goal.name, path, rendered)


def _render(record: Record, task: Classify | Chat, template: ChatTemplate, max_length: int) -> Rendered:
    example = task.encode(record, 0, template, max_length)[0]
    pieces: list[tuple[str, bool]] = []
    start = 0
    for t in range(1, len(example.tokens) + 1):
        if t == len(example.tokens) or example.supervised[t] != example.supervised[start]:
            pieces.append((template.tokenizer.decode(example.tokens[start:t]), example.supervised[start]))
            start = t
    return Rendered(record.line, tuple(pieces))


def _judge(
    task: Classify | Chat, scorer: Scorer, records: list[Record], settings: Settings, listener: Listener
) -> Validation | None:
    chosen = sample(records, range(len(records)), settings.validation_limit, settings.seed)
    judge = validation(task, scorer, [records[i] for i in chosen], listener)
    if judge is None:
        listener(Note("there is no validation part: the last step's weights will be kept, not the best", "warning"))
    return judge


def _load(name: str, technique: Technique, listener: Listener) -> Base:
    return load_base(name, dtype=_dtype(technique.capabilities), listener=listener)


def _dtype(capabilities: frozenset[str]) -> torch.dtype | None:
    """Weights that are trained themselves are float32 everywhere: small updates vanish in bfloat16."""
    return torch.float32 if "trains_base" in capabilities else None


def _check_quantization(technique: Technique, settings: Settings) -> None:
    """Before anything is loaded: the library is there, and nothing that is trained would be stored in 4 bits."""
    if settings.quantize is not None and "trains_base" in technique.capabilities:
        raise UsageError(
            f"{technique.name} trains the base's own weights, and a weight in 4 bits cannot be trained; "
            "leave quantize out, or take a technique that keeps the base frozen"
        )
    if settings.quantize is not None or "quantizes_base" in technique.capabilities:
        require_library()


def _quantize(anatomy: Anatomy, technique: Technique | type[Technique], settings: Settings, listener: Listener) -> None:
    """Stores the base in 4 bits where the run or its technique says so, before anything is attached to it."""
    if settings.quantize is not None or "quantizes_base" in technique.capabilities:
        quantize(anatomy, listener)


def _same_base(base: Base, manifest: dict[str, Any]) -> None:
    if base.fingerprint != manifest["base"]["fingerprint"]:
        raise RunError(
            f"the base {base.name} is not the one this run began with (its weights or tokenizer differ); "
            "put the old one back, or tune anew"
        )


def _versions() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
    }
