"""What would spoil a tuned model's replies without a word, looked for before anything is trained.

A model says what it was shown. Where the token that ends a turn is not supervised it never stops; where the
begin-of-sequence token stands twice it reads what its base has never seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from heptune.core.errors import BaseModelError
from heptune.core.events import Note
from heptune.tasks.example import Example
from heptune.tasks.template import ChatTemplate


@dataclass(frozen=True)
class Ends:
    """How the replies of some examples end: `cut` of them at the length limit, `endless` without a token that ends a
    turn, the others with one that is supervised."""

    replies: int = 0
    cut: int = 0
    endless: int = 0

    def __add__(self, other: Ends) -> Ends:
        return Ends(self.replies + other.replies, self.cut + other.cut, self.endless + other.endless)


def ends_of(examples: Iterable[Example], template: ChatTemplate) -> Ends:
    """Counts the replies of `examples`, each a run of supervised tokens, and looks at the last token of each."""
    replies = cut = endless = 0
    for example in examples:
        last = len(example.tokens) - 1
        for t, (token, supervised) in enumerate(zip(example.tokens, example.supervised, strict=True)):
            if not supervised or (t < last and example.supervised[t + 1]):
                continue
            replies += 1
            if token not in template.stop_tokens:
                at_the_limit = t == last and example.cut > 0
                cut, endless = cut + at_the_limit, endless + (not at_the_limit)
    return Ends(replies, cut, endless)


def about_ends(ends: Ends, max_length: int) -> list[Note]:
    """What to tell of them. Raises `BaseModelError` where a reply has no end: the tuned model would not stop."""
    if ends.endless:
        raise BaseModelError(
            f"{ends.endless} of {ends.replies} replies do not end with a token that ends a turn, so that a model tuned "
            "on them would not stop; this base's chat template is at fault: use another base, or repair its template"
        )
    if ends.cut:
        text = f"{ends.cut} of {ends.replies} replies are cut by the limit of {max_length} tokens"
        return [Note(f"{text}: how they end is not learned", "warning")]
    return []


def about_base(name: str, template: ChatTemplate) -> list[Note]:
    """What to tell of a base's template and tokenizer."""
    notes = []
    tokenizer = template.tokenizer
    if template.is_default:
        text = f"{name} has no chat template; Heptune's default (User: ... Assistant: ...) is used"
        notes.append(Note(text, "warning"))
    if template.writes_bos_twice:
        text = (
            f"{tokenizer.bos_token} would stand twice before a conversation, by the chat template of {name} and by its"
        )
        notes.append(Note(f"{text} tokenizer; here it stands once, as it has to where the tuned model is served"))
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id in template.stop_tokens:
        text = (
            f"{name} pads with {tokenizer.pad_token}, which also ends a reply; Heptune pads nothing and learns that end"
        )
        notes.append(Note(f"{text}, but a trainer that leaves padding out of the loss would hide it"))
    return notes
