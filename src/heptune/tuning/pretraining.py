"""A new small model from a corpus: tokenizer, first weights, training of all of them, and the base that comes out.

The run directory of a pre-training holds, beside what every run has:

    initial/    the base as it began: tokenizer and random weights
    base/       the base that came out, to be tuned like any other

Before the first step everything is whole on disk, so that the run goes on like any other.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from heptune.core.errors import HeptuneError
from heptune.core.events import Listener, Note
from heptune.data.corpus import Documents
from heptune.data.parts import DataOptions
from heptune.data.record import Record
from heptune.engine.settings import Settings
from heptune.models.anatomy import dissect
from heptune.models.load import load_base
from heptune.models.newborn import configuration, train_tokenizer, usual_rate, write_newborn
from heptune.models.quiet import quiet
from heptune.runs.files import new_folder
from heptune.runs.run import Run
from heptune.tasks.options import TaskOptions
from heptune.techniques.full import Full
from heptune.tuning import base as bases
from heptune.tuning import problem as problems
from heptune.tuning import training

INITIAL, BASE = bases.INITIAL, "base"
# Text that the tokenizer is learned from: more changes its merges little and takes memory.
TOKENIZER_BYTES = 32 << 20
# Tokens a parameter that are worth training on (Hoffmann et al. 2022, "Training Compute-Optimal Large Language
# Models"), and how often a small corpus is worth repeating for them (Muennighoff et al. 2023, "Scaling Data-Constrained
# Language Models").
TOKENS_A_PARAMETER, MOST_EPOCHS = 20, 16
# Characters of the training part that tell how many of them a token has.
_MEASURED = 1 << 18
# The files of a base that are no part of its tokenizer.
_WEIGHTS = ("config.json", "generation_config.json", "model.safetensors")


def pretrain(
    config: str,
    corpus: str | Path,
    folder: Path,
    vocabulary: int,
    context: int,
    options: DataOptions,
    knobs: dict[str, Any],
    listener: Listener,
) -> Run:
    """Makes a model and trains it. `knobs` are those of Settings: without `epochs` there are as many as make 20 tokens
    a parameter, from 1 to 16; without `learning_rate` it is the size's own."""
    Settings.from_values({**knobs, "max_length": context})  # refused before anything is read
    configuration(config, vocabulary, context)
    Run.require_free(folder, beside=(INITIAL,))
    seed = int(knobs.get("seed", Settings.seed))
    problem = problems.pose(corpus, "complete", options, TaskOptions(), seed, listener)
    train = problem.parts.train
    listener(Note("learning the tokenizer"))
    tokenizer = train_tokenizer(_texts(train, TOKENIZER_BYTES), vocabulary, context)
    if len(tokenizer) < vocabulary:
        listener(Note(f"the corpus gives {len(tokenizer)} tokens, not {vocabulary}; the vocabulary is that small"))
    made = configuration(config, len(tokenizer), context)
    with new_folder(folder / INITIAL) as initial:
        write_newborn(initial, made, tokenizer, seed)
    try:
        loaded = bases.load(str(folder / INITIAL), Full, listener)
        parameters = dissect(loaded.model).shape.parameters
        chosen = {"epochs": _epochs(train, tokenizer, parameters), "learning_rate": usual_rate(config, parameters)}
        settings = Settings.from_values(
            {**chosen, **{k: v for k, v in knobs.items() if v is not None}, "max_length": context}
        )
        technique = Full(learning_rate=settings.learning_rate or chosen["learning_rate"])
        run = training.begin(
            folder, str(folder / INITIAL), loaded, technique, problem, settings, listener, beside=(INITIAL,)
        )
        told = {"config": config, "vocabulary": len(tokenizer), "context": context, "parameters": parameters}
        run.update(pretrain=told)
        training.train(run, loaded, technique, problem, listener)
    except HeptuneError:
        if not (folder / "manifest.json").exists() or Run(folder).manifest["status"] == "new":
            shutil.rmtree(folder / INITIAL, ignore_errors=True)
            if (folder / "manifest.json").exists():
                Run(folder).discard()
        raise
    finish(run)
    return run


def finish(run: Run) -> None:
    """Writes the base of a finished pre-training, where it is not there yet. Other runs are left as they are."""
    if "pretrain" not in run.manifest or run.manifest["status"] != "finished" or (run.folder / BASE).is_dir():
        return
    loaded = load_base(str(run.folder / INITIAL), dtype=bases.dtype(Full.capabilities), device="cpu")
    Full.restore(dissect(loaded.model), run.artifact)
    with new_folder(run.folder / BASE) as made:
        with quiet():
            loaded.model.save_pretrained(made)
        for file in (run.folder / INITIAL).iterdir():
            if file.name not in _WEIGHTS:
                shutil.copy(file, made / file.name)


def is_due(run: Run) -> bool:
    """Whether a pre-training is over but its base is not written."""
    finished = run.manifest["status"] == "finished"
    return "pretrain" in run.manifest and finished and not (run.folder / BASE).is_dir()


def _texts(train: Sequence[Record], limit: int) -> Iterator[str]:
    """Training texts from all over the corpus, of `limit` bytes together at most."""
    share = 1.0
    if isinstance(train, Documents):
        share = min(1.0, limit / max(1, int(train.sizes.sum())))
    last = -1
    for at in range(len(train)):
        if int(at * share) > last:
            last = int(at * share)
            yield train[at].text or ""


def _epochs(train: Sequence[Record], tokenizer: Any, parameters: int) -> float:
    """How often the corpus is gone through: see `TOKENS_A_PARAMETER`."""
    size = int(train.sizes.sum()) if isinstance(train, Documents) else sum(len((r.text or "").encode()) for r in train)
    texts = list(_texts(train, _MEASURED)) if isinstance(train, Documents) else [r.text or "" for r in train[:100]]
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False, verbose=False)) for text in texts)
    all_tokens = max(1.0, size * tokens / sum(len(text.encode()) for text in texts))
    return float(max(1, min(MOST_EPOCHS, round(TOKENS_A_PARAMETER * parameters / all_tokens))))
