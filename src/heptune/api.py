"""The verbs: tune, resume, evaluate, open, load, check, explain. The command line calls nothing else."""

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
from heptune.core.errors import DataError, HeptuneError, RunError, TechniqueError
from heptune.core.events import Event, Listener, Note, Progress, ignore
from heptune.data.check import CheckReport, Lengths, check_labels
from heptune.data.check import check as check_data
from heptune.data.readers import Dataset, locate, read
from heptune.data.record import Message, Record
from heptune.data.splits import Split, sample, split
from heptune.engine.forward import Forward
from heptune.engine.loop import Training, Validation, batches_of, keep_artifact, steps_in_time
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy, dissect
from heptune.models.load import Base, load_base, load_tokenizer
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
from heptune.tasks.chat import Chat
from heptune.tasks.classify import Classify
from heptune.tasks.example import Example
from heptune.tasks.template import ChatTemplate
from heptune.techniques._contract import Attached, Technique

# Shares of the training file that become validation and test where no file is named for them.
VALIDATION_SHARE = 0.1
TEST_SHARE = 0.1
# Rows of one forward pass when nothing is differentiated.
SCORING_ROWS = 4096


@dataclass(frozen=True)
class DataOptions:
    """How a data set is read and cut into parts.

    `validation` and `test` are files, or shares of the training file (0: none). `limit` is the most training examples.
    `columns` names columns by hand (role -> the file's column).
    """

    validation: str | Path | float | None = None
    test: str | Path | float | None = None
    limit: int | None = None
    columns: Mapping[str, str] | None = None
    skip_bad: bool = False


@dataclass(frozen=True)
class _Parts:
    """The records of each part, and what the manifest keeps about their origin."""

    train: list[Record]
    validation: list[Record]
    test: list[Record]
    source: dict[str, Any]
    split: Split

    def place(self, index: int) -> str:
        """Where a training record stands."""
        return f"{self.source['train']['path']}:{self.train[index].line}"


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
    options = options or DataOptions()
    parts = _read_parts(data, options, knobs.seed, task, listener)
    goal = _task(task, parts, instruction, system)
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
            "name": base,
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
    return _train(run, loaded, chosen, goal, template, parts, knobs, listener)


def resume(folder: str | Path, *, listener: Listener = ignore) -> Run:
    """Continues an interrupted run from its newest checkpoint, to the same bits as without the interruption.

    Raises `RunError` when the run is finished, or the base or the data are no longer those it began with.
    """
    run = Run(folder)
    manifest = run.manifest
    if manifest["status"] == "finished":
        raise RunError(f"{folder} is finished; look at it with `heptune eval {folder}`")
    chosen = techniques.build(manifest["technique"]["name"], manifest["technique"]["settings"])
    parts = _reread_parts(manifest)
    goal = tasks.from_json(manifest["task"])
    loaded = _load(manifest["base"]["name"], chosen, listener)
    _same_base(loaded, manifest)
    changed = {k: (v, _versions().get(k)) for k, v in manifest["versions"].items() if _versions().get(k) != v}
    if changed:
        text = ", ".join(f"{name} {was} -> {now}" for name, (was, now) in changed.items())
        listener(
            Note(
                f"this run began with other versions ({text}); its bits may differ from an uninterrupted run", "warning"
            )
        )
    if manifest["threads"] != torch.get_num_threads():
        text = f"{manifest['threads']} threads, now there are {torch.get_num_threads()}"
        listener(Note(f"this run began with {text}; its last bits may differ from an uninterrupted run", "warning"))
    template = ChatTemplate(loaded.tokenizer, manifest["template"])
    return _train(run, loaded, chosen, goal, template, parts, Settings(**manifest["settings"]), listener)


def _train(
    run: Run,
    base: Base,
    technique: Technique,
    task: Classify | Chat,
    template: ChatTemplate,
    parts: _Parts,
    settings: Settings,
    listener: Listener,
) -> Run:
    log = EventLog(run.folder / "events.jsonl")

    def tell(event: Event) -> None:
        if not isinstance(event, Progress):
            log(event)
        listener(event)

    with run.locked():
        examples = _encode(task, parts.train, template, settings.max_length, tell)
        anatomy = dissect(base.model)
        forward = Forward(anatomy, settings.recompute, tell)
        attached = technique.attach(anatomy, settings.seed)
        scorer = Scorer(forward, template, settings.max_length, SCORING_ROWS)
        validation = _validation(task, scorer, parts.validation, settings, listener)
        steps = run.manifest.get("steps")
        if steps is None:
            steps = batches_of(examples, settings).steps(settings.epochs)
            steps = min(steps, settings.max_steps or steps)
            if settings.max_minutes is not None:
                steps = steps_in_time(forward, attached, examples, settings, validation, steps)
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
            validation=validation,
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
        artifact = keep_artifact(run.folder, attached, base.name, outcome.state)
        _prove_artifact(artifact, attached, outcome.state.best_step in (None, outcome.state.step))
        state = outcome.state
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
    parts = _reread_parts(manifest)
    part, records = _evaluation_part(parts, data, columns)
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
    if isinstance(task, Classify):
        base_log_p = scorer.labels(task, records, "scoring the untouched base", listener)
        technique.restore(anatomy, artifact)
        tuned_log_p = scorer.labels(task, records, "scoring the tuned model", listener)
        result = classification(task, part, records, parts.train, base_log_p, tuned_log_p, settings.seed)
    else:
        result = _evaluate_chat(
            task, part, records, scorer, anatomy, lambda: technique.restore(anatomy, artifact), settings, listener
        )
    (run.folder / "evaluations").mkdir(exist_ok=True)
    write_json(run.folder / "evaluations" / f"{time.strftime('%Y%m%d-%H%M%S')}.json", result.to_json())
    return result


def _evaluate_chat(
    task: Chat,
    part: str,
    records: list[Record],
    scorer: Scorer,
    anatomy: Anatomy,
    restore: Callable[[], Attached],
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
        return reply(anatomy.model, scorer.template, messages, sampling)

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
    model: transformers.PreTrainedModel
    template: ChatTemplate
    scorer: Scorer

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
        return reply(self.model, self.template, asked, sampling or Sampling(), on_text)


def open_run(folder: str | Path, *, listener: Listener = ignore) -> Tuned:
    """Loads a run's base and artifact for use."""
    run = Run(folder)
    artifact = run.artifact
    manifest = run.manifest
    technique = techniques.get(manifest["technique"]["name"])
    base = load_base(manifest["base"]["name"], dtype=_dtype(technique.capabilities), listener=listener)
    _same_base(base, manifest)
    anatomy = dissect(base.model)
    forward = Forward(anatomy, listener=listener)
    technique.restore(anatomy, artifact)
    template = ChatTemplate(base.tokenizer, manifest["template"])
    scorer = Scorer(forward, template, manifest["settings"]["max_length"], SCORING_ROWS)
    return Tuned(run, tasks.from_json(manifest["task"]), base.model, template, scorer)


def load(base: str, folder: str | Path, *, listener: Listener = ignore) -> transformers.PreTrainedModel:
    """A base with an artifact on it, as a transformers model: written by Heptune, or a LoRA written by PEFT."""
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
    files = _locate(data, options)
    dataset = read(files.train, columns=options.columns, skip_bad=options.skip_bad)
    path = files.test or files.validation
    evaluation = read(path, columns=options.columns, skip_bad=options.skip_bad) if path is not None else None
    try:
        goal = _goal(task, dataset.records, instruction, system)
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


def _locate(data: str | Path, options: DataOptions) -> Any:
    validation = options.validation if isinstance(options.validation, str | Path) else None
    test = options.test if isinstance(options.test, str | Path) else None
    return locate(data, validation, test)


def _read_parts(data: str | Path, options: DataOptions, seed: int, task: str | None, listener: Listener) -> _Parts:
    files = _locate(data, options)
    train, validation, test = (
        None if path is None else read(path, columns=options.columns, skip_bad=options.skip_bad)
        for path in (files.train, files.validation, files.test)
    )
    assert train is not None
    if task is None:
        tasks.choose(train.kind)  # data that nothing can be learned from is refused before it is cut into parts
    for dataset in (train, validation, test):
        if dataset is not None and dataset.skipped:
            count, first = len(dataset.skipped), dataset.skipped[0]
            listener(Note(f"{dataset.path}: {count} bad lines left out, the first: {first}", "warning"))
    shares = {
        "validation": 0.0 if validation is not None else _share(options.validation, VALIDATION_SHARE),
        "test": 0.0 if test is not None else _share(options.test, TEST_SHARE),
    }
    cut = split(train.records, seed=seed, **shares)
    kept = cut.train if options.limit is None else sample(train.records, cut.train, options.limit, seed)
    cut = Split(kept, cut.validation, cut.test)
    source = {
        "train": _origin(train),
        "validation": None if validation is None else _origin(validation),
        "test": None if test is None else _origin(test),
        "columns": dict(options.columns or {}),
        "skip_bad": options.skip_bad,
    }
    return _assemble(train, validation, test, source, cut)


def _share(value: str | Path | float | None, default: float) -> float:
    return default if not isinstance(value, int | float) else float(value)


def _origin(dataset: Dataset) -> dict[str, Any]:
    return {
        "path": str(dataset.path.resolve()),
        "sha256": dataset.sha256,
        "format": dataset.format,
        "records": len(dataset.records),
    }


def _assemble(
    train: Dataset, validation: Dataset | None, test: Dataset | None, source: dict[str, Any], cut: Split
) -> _Parts:
    def records(indices: Sequence[int]) -> list[Record]:
        return [train.records[i] for i in indices]

    return _Parts(
        records(cut.train),
        records(cut.validation) if validation is None else list(validation.records),
        records(cut.test) if test is None else list(test.records),
        source,
        cut,
    )


def _reread_parts(manifest: dict[str, Any]) -> _Parts:
    """The run's data again; `RunError` when a file is gone or has changed."""
    source = manifest["data"]
    datasets: list[Dataset | None] = []
    for part in ("train", "validation", "test"):
        origin = source[part]
        if origin is None:
            datasets.append(None)
            continue
        if not Path(origin["path"]).is_file():
            raise RunError(f"the run's data {origin['path']} is gone; put it back to go on with this run")
        dataset = read(origin["path"], columns=source["columns"], skip_bad=source["skip_bad"])
        if dataset.sha256 != origin["sha256"]:
            raise RunError(f"{origin['path']} has changed since the run began; put the old file back, or tune anew")
        datasets.append(dataset)
    train, validation, test = datasets
    assert train is not None
    return _assemble(train, validation, test, source, Split.from_json(manifest["split"]))


def _task(name: str | None, parts: _Parts, instruction: str | None, system: str | None) -> Classify | Chat:
    goal = _goal(name, parts.train, instruction, system)
    if isinstance(goal, Classify):
        for part, records in (("validation", parts.validation), ("test", parts.test)):
            origin = parts.source[part]
            check_labels(goal.labels, records, None if origin is None else origin["path"])
    return goal


def _goal(name: str | None, records: Sequence[Record], instruction: str | None, system: str | None) -> Classify | Chat:
    kind = records[0].kind if records else "no records"
    chosen = tasks.get(name or tasks.choose(kind)).name
    return Classify.from_records(records, instruction) if chosen == Classify.name else Chat(system)


def _encode(
    task: Classify | Chat, records: list[Record], template: ChatTemplate, max_length: int, listener: Listener
) -> list[Example]:
    examples = [e for i, record in enumerate(records) for e in task.encode(record, i, template, max_length)]
    usable = [example for example in examples if example.targets]
    dropped, cut = len(examples) - len(usable), sum(example.cut > 0 for example in usable)
    if not usable:
        raise DataError(
            f"no example has anything supervised within {max_length} tokens; "
            "raise --max-length, or look at the data with `heptune check`"
        )
    if dropped:
        listener(
            Note(f"{dropped} examples have nothing supervised within {max_length} tokens and were left out", "warning")
        )
    if cut:
        listener(Note(f"{cut} examples are longer than {max_length} tokens and were cut", "warning"))
    return usable


def _validation(
    task: Classify | Chat, scorer: Scorer, records: list[Record], settings: Settings, listener: Listener
) -> Validation | None:
    if not records:
        listener(Note("there is no validation part: the last step's weights will be kept, not the best", "warning"))
        return None
    chosen = sample(records, range(len(records)), settings.validation_limit, settings.seed)
    records = [records[i] for i in chosen]
    if isinstance(task, Classify):
        labels = task.labels
        truth = np.array([labels.index(record.label or "") for record in records])

        def score() -> dict[str, float]:
            log_p = normalised(scorer.labels(task, records, "validating", listener))
            right = log_p.argmax(1) == truth
            return {"accuracy": float(right.mean()), "loss": float(-log_p[np.arange(len(truth)), truth].mean())}
    else:
        examples = [e for i, r in enumerate(records) for e in task.encode(r, i, scorer.template, settings.max_length)]
        examples = [example for example in examples if example.targets]
        tokens = sum(example.targets for example in examples)
        if not tokens:
            return None

        def score() -> dict[str, float]:
            return {"loss": float(scorer.losses(examples, "validating", listener).sum() / tokens)}

    return Validation(score, task.metric, task.higher_is_better)


def _load(name: str, technique: Technique, listener: Listener) -> Base:
    return load_base(name, dtype=_dtype(technique.capabilities), listener=listener)


def _dtype(capabilities: frozenset[str]) -> torch.dtype | None:
    """Weights that are trained themselves are float32 everywhere: small updates vanish in bfloat16."""
    return torch.float32 if "trains_base" in capabilities else None


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


def _evaluation_part(
    parts: _Parts, data: str | Path | None, columns: Mapping[str, str] | None
) -> tuple[str, list[Record]]:
    if data is not None:
        return str(data), list(read(data, columns=columns).records)
    if parts.test:
        return "the test part", parts.test
    return "the validation part (there is no test part)", parts.validation


def _prove_artifact(artifact: Path, attached: Attached, is_current: bool) -> None:
    """Reads the artifact back: every tensor finite and, where it is the current state, equal to what is in memory."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in artifact.glob("*.safetensors"):
        tensors |= load_file(path)
    own = attached.parameters
    if tensors.keys() != own.keys():
        raise RunError(f"{artifact} does not hold what was trained; this is a defect, please report it")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise TechniqueError(f"{artifact}: {name} has values that are not finite; the checkpoints before stay")
        if is_current and not torch.equal(tensor, own[name].detach().cpu()):
            raise RunError(
                f"{artifact}: {name} was not written as it was in memory; check the disk, then resume the run"
            )
