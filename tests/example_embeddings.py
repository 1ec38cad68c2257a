"""Utterances that no file belongs to, with embeddings, for tests of stores."""

from pathlib import Path

import numpy as np

from balr.records import Embedded, Utterance

COUNT, DIM = 7, 5
UTTERANCES = [
    Utterance(f"u{number}", Path(f"/corpus/s{number % 2}/{number}.wav"), f"s{number % 2}", extra={"note": "n"})
    for number in range(COUNT)
]


def embedded(*numbers: int) -> list[Embedded]:
    return [
        Embedded(UTTERANCES[n], np.random.default_rng(n).standard_normal(DIM).astype(np.float32), 1.0) for n in numbers
    ]
