"""What peers of the training benchmark share: arrays of a folder, the batches of a pass, and predictions."""

import json
from pathlib import Path

import numpy as np


class Trained:
    """A model that is given arrays, trained a pass at a time, and asked what it predicts.

    A subclass makes the model in `build`, takes a pass in `train` and answers for validation rows with arrays
    by name in `predictions`.
    """

    passes = 0

    def build(self):
        raise NotImplementedError

    def predictions(self, valid):
        raise NotImplementedError

    def load(self, folder, about):
        self.about = json.loads(about)
        self.arrays = read(folder)
        self.rows = len(self.arrays["pair_query"])
        self.build()

    def predict(self, folder):
        made = Path(folder) / f"{type(self).__name__}.npz"
        np.savez(made, **self.predictions(read(folder)))
        return {"file": str(made)}

    def next_batches(self):
        """Rows of each batch of the next pass: any for a DLRM, of one market for a two-tower."""
        random = np.random.default_rng(self.passes)
        self.passes += 1
        order, size = random.permutation(self.rows), self.about["batch_size"]
        if self.about["model"] == "dlrm":
            return [order[start : start + size] for start in range(0, self.rows, size)]
        market = self.arrays["market"][order]
        batches = []
        for code in np.unique(market):
            here = order[market == code]
            batches += np.array_split(here, max(1, round(len(here) / size)))
        return [batches[place] for place in random.permutation(len(batches))]


def read(folder):
    return {path.stem: np.load(path) for path in Path(folder).glob("*.npy")}
