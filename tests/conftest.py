"""What holds for every test: one thread, so that bits do not depend on the machine's cores, and no network."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers

transformers.logging.set_verbosity_error()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What the imports left stays: races collect garbage between candidates, and would look through all of it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before every test and its fixtures: a command that ran in this process may have set its own number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_races(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test's race came to is no prior of this machine; nor what a fixture's did, hence the session's scope."""
    folder = tmp_path_factory.mktemp("races")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("heptune.planning.priors.cache_folder", lambda: folder)
        yield
