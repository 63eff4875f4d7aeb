"""Text as it grows, token by token: characters of several tokens wait for their last one, stop strings end it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase


class Growing:
    """The text of tokens that are said one after the other. `stops` end it and are no part of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.tokens: list[int] = []
        self.text = ""  # what is certain
        self.given = 0  # characters of it that were handed out
        self.stopped = False
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._stream = DecodeStream(skip_special_tokens=True) if self._backend is not None else None

    def add(self, token: int) -> None:
        """One more token; `stopped` says whether a stop string is complete with it."""
        self.tokens.append(token)
        if self._stream is not None:
            try:
                self.text += self._stream.step(self._backend, token) or ""
            except Exception:  # tokenizers 0.23 gives up on some tokens that are no UTF-8 together
                self._stream = None
        if self._stream is None:
            whole = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
            self.text = self.text if whole.endswith("�") else whole
        self._look_for_stops()

    def end(self) -> None:
        """No token follows: what was held back is certain now."""
        if not self.stopped:
            self.text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
            self._look_for_stops()

    def piece(self, final: bool = False) -> str:
        """What can be handed out since the last time: nothing that may be the beginning of a stop string."""
        until = len(self.text)
        if not final and not self.stopped:
            until -= max((_overlap(self.text, stop) for stop in self.stops), default=0)
        found = self.text[self.given : until]
        self.given = max(self.given, until)
        return found

    def _look_for_stops(self) -> None:
        places = [self.text.find(stop, max(0, self.given - len(stop))) for stop in self.stops]
        found = [place for place in places if place >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True


def _overlap(text: str, stop: str) -> int:
    """How many of the text's last characters are the first ones of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
