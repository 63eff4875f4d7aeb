"""What a tuned model has to beat: the most frequent label, and a linear model on word counts.

Neither costs more than seconds. A tuned model that is not better than both has learned nothing worth its cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from heptune.core.errors import DataError


def majority(train_labels: Sequence[str], count: int) -> list[str]:
    """`count` times the most frequent training label; of equally frequent ones the first in the alphabet."""
    if not train_labels:
        raise DataError("the majority label needs at least one training example; the training part is empty")
    frequency = Counter(train_labels)
    return [min(frequency, key=lambda label: (-frequency[label], label))] * count


def tfidf(train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Predictions for `texts` by logistic regression on TF-IDF weights of words and word pairs.

    Where nothing can be fitted (one label only, or no text with a word of two letters) it is the majority label.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    analyze = vectorizer.build_analyzer()
    if not texts or len(set(train_labels)) < 2 or not any(analyze(text) for text in train_texts):
        return majority(train_labels, len(texts))
    model = LogisticRegression(max_iter=1000, random_state=0)
    model.fit(vectorizer.fit_transform(train_texts), list(train_labels))
    return [str(label) for label in model.predict(vectorizer.transform(texts))]
