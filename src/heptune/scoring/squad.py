"""How near a free answer is to the accepted ones: exact match and token F1, by SQuAD's own rules.

Source: the official evaluation scripts of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018). The two agree but where an
answer is empty after its normalisation ("the"); there it is 2.0's rule.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """In lower case, without ASCII punctuation and English articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(said: str, accepted: Sequence[str]) -> float:
    """1.0 where the answer is one of the accepted ones after normalisation, else 0.0."""
    return float(normalised(said) in _normalised(accepted))


def token_f1(said: str, accepted: Sequence[str]) -> float:
    """The best F1 = 2 common / (words said + words accepted) over the accepted answers, after normalisation.

    Where one of the two is empty it is 1.0 if both are, else 0.0.
    """
    words = normalised(said).split()
    return max(_f1(words, other.split()) for other in _normalised(accepted))


def _normalised(accepted: Sequence[str]) -> list[str]:
    """Those with something left; one empty answer where nothing is left of any."""
    return [text for text in map(normalised, accepted) if text] or [""]


def _f1(a: list[str], b: list[str]) -> float:
    if not a or not b:
        return float(a == b)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b))
