"""What holds for every test: one thread, so that results do not depend on the machine's cores, and no network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
