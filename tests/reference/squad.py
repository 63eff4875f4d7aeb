"""SQuAD's evaluation, rule by rule as its official script for version 2.0 states them, written down plainly."""

from __future__ import annotations

PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def normalise_answer(text: str) -> str:
    lowered = text.lower()
    without_punctuation = "".join(character for character in lowered if character not in PUNCTUATION)
    return " ".join(without_articles(without_punctuation).split())


def without_articles(text: str) -> str:
    """Every article that stands between word boundaries becomes a space; scanned from the left."""
    out, at = "", 0
    while at < len(text):
        for article in ("an", "a", "the"):
            end = at + len(article)
            begins = at == 0 or not is_word(text[at - 1])
            ends = end >= len(text) or not is_word(text[end])
            if text[at:end] == article and begins and ends:
                out, at = out + " ", end
                break
        else:
            out, at = out + text[at], at + 1
    return out


def usable(accepted: list[str]) -> list[str]:
    kept = [answer for answer in accepted if normalise_answer(answer)]
    return kept if kept else [""]


def compute_exact(gold: str, predicted: str) -> int:
    return int(normalise_answer(gold) == normalise_answer(predicted))


def compute_f1(gold: str, predicted: str) -> float:
    gold_tokens, predicted_tokens = normalise_answer(gold).split(), normalise_answer(predicted).split()
    if len(gold_tokens) == 0 or len(predicted_tokens) == 0:
        return int(gold_tokens == predicted_tokens)
    left = list(gold_tokens)
    same = 0
    for token in predicted_tokens:
        if token in left:
            left.remove(token)
            same += 1
    if same == 0:
        return 0
    precision, recall = same / len(predicted_tokens), same / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


def scores(predicted: str, accepted: list[str]) -> tuple[float, float]:
    """The best exact match and the best F1 over the accepted answers."""
    golds = usable(accepted)
    return max(compute_exact(g, predicted) for g in golds), max(compute_f1(g, predicted) for g in golds)
