"""From ranked candidates to the slate: one value each, then a greedy choice with diversity and caps."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from ensemble.channels import NONE
from ensemble.errors import Code, RequestError
from ensemble.plan import Plan
from ensemble.release import Release
from ensemble.steps import StageStep, TensorSpec


class Reason(IntEnum):
    """Why an item stands where it stands."""

    VALUE = 0
    DIVERSITY = 1
    CAP = 2

    @property
    def text(self) -> str:
        return {
            Reason.VALUE: "highest value",
            Reason.DIVERSITY: "adds variety",
            Reason.CAP: "others at their cap",
        }[self]


class Reordering:
    """Blends the ranker's outcomes into one value and chooses the slate by maximal marginal relevance.

    Carbonell and Goldstein, SIGIR 1998. Value is scaled to [0, 1] within a request's pool; likeness is the
    cosine of content vectors.
    """

    name = "reordering"

    def __init__(self, release: Release) -> None:
        self.plan = Plan.of(release)
        self.content_id = release.array("text_content_id.npy")
        self.vectors = release.array("content_vectors.npy")
        self.groups = np.stack([release.array("seller_code.npy"), release.array("category_code.npy")])
        caps = self.plan.config.seller_cap, self.plan.config.category_cap
        self.caps = np.array(caps).reshape(2, 1, 1)

    @staticmethod
    def step(plan: Plan) -> StageStep:
        """Border of the stage."""
        size, slate, tasks = plan.config.candidates, plan.config.slate, len(plan.tasks)
        return StageStep(
            Reordering.name,
            (
                TensorSpec("candidates", np.int64, (size,)),
                TensorSpec("retrieval_score", np.float32, (size,)),
                TensorSpec("channel", np.int32, (size,)),
                TensorSpec("probabilities", np.float32, (size, tasks)),
                TensorSpec("diversity", np.float32),
            ),
            (
                TensorSpec("content_id", object, (slate,)),
                TensorSpec("slate_channel", np.int32, (slate,)),
                TensorSpec("slate_reason", np.int32, (slate,)),
                TensorSpec("slate_retrieval_rank", np.int32, (slate,)),
                TensorSpec("slate_retrieval_score", np.float32, (slate,)),
                TensorSpec("slate_probabilities", np.float32, (slate, tasks)),
                TensorSpec("slate_value", np.float32, (slate,)),
            ),
        )

    def __call__(
        self,
        candidates: np.ndarray,
        retrieval_score: np.ndarray,
        channel: np.ndarray,
        probabilities: np.ndarray,
        diversity: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """The slate of each request; places without an item have id "" and zeros.

        Raises:
            RequestError: `diversity` outside [0, 1].
        """
        if ((diversity < 0) | (diversity > 1)).any():
            row = int(np.flatnonzero((diversity < 0) | (diversity > 1))[0])
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f"tensor 'diversity' holds {float(diversity[row])} at row {row}; send 0 to 1",
            )
        each = np.arange(len(candidates))[:, None]
        value = np.where(candidates >= 0, self.plan.value(probabilities), -np.inf)
        pool = np.argsort(-value, axis=1, kind="stable")[:, : self.plan.config.pool]
        chosen, reason = self._choose(candidates[each, pool], value[each, pool], diversity)
        filled = chosen >= 0
        place = pool[each, np.maximum(chosen, 0)]

        def slate(array: np.ndarray) -> np.ndarray:
            picked = array[each, place]
            return np.where(filled.reshape(filled.shape + (1,) * (array.ndim - 2)), picked, 0).astype(
                array.dtype, copy=False
            )

        ids = self.content_id[slate(candidates)]
        return {
            "content_id": np.where(filled, ids, "").astype(object),
            "slate_channel": slate(channel),
            "slate_reason": np.where(filled, reason, 0).astype(np.int32),
            "slate_retrieval_rank": np.where(filled, place + 1, 0).astype(np.int32),
            "slate_retrieval_score": slate(retrieval_score),
            "slate_probabilities": slate(probabilities),
            "slate_value": np.where(filled, value[each, place], 0).astype(np.float32),
        }

    def _choose(
        self, candidates: np.ndarray, value: np.ndarray, diversity: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Greedy choice from a pool sorted by value.

        Caps yield only when nothing else is left, so a slate is never shorter than the pool allows.

        Args:
            candidates: int64[B, P]; value: float32[B, P], -inf where there is none; diversity: float32[B].

        Returns:
            places int64[B, S] in the pool, -1 fills; reason int64[B, S].
        """
        batch, size = candidates.shape
        slate, each = self.plan.config.slate, np.arange(batch)
        present = candidates >= 0
        rows = np.maximum(candidates, 0)
        vectors = self.vectors[rows]
        groups = self.groups[:, rows]
        groups = np.where(
            groups >= 0, groups, -1 - np.arange(size)
        )  # without a group, it is alone in its own
        some = present.any(axis=1, keepdims=True)
        low = np.where(some, np.min(value, axis=1, keepdims=True, where=present, initial=np.inf), 0)
        high = np.where(some, np.max(value, axis=1, keepdims=True), 0)
        weight = diversity[:, None]
        worth = np.where(present, value - low, 0) / np.maximum(high - low, 1e-9)
        worth *= 1 - weight
        likeness = np.zeros((batch, size), np.float32)
        count = np.zeros(groups.shape, np.int16)
        free, open_ = present.copy(), present
        best = np.zeros((slate, batch), np.int64)
        were_free, were_open = np.empty((2, slate, batch, size), bool)
        for position in range(slate):
            were_free[position], were_open[position] = free, open_
            if not (allowed := open_.any(axis=1)).all():
                open_ = np.where(allowed[:, None], open_, free)
                were_open[position] = open_
            gain = np.where(open_, worth - weight * likeness, -np.inf)
            best[position] = one = gain.argmax(axis=1)
            free[each, one] = False
            alike = np.einsum("bpd,bd->bp", vectors, vectors[each, one])
            likeness = np.maximum(likeness, alike) if position else alike
            count += groups == groups[:, each, one][..., None]
            open_ = free & (count < self.caps).all(axis=0)
        places = np.where(were_free.any(axis=2), best, NONE)
        by_value = were_free.argmax(axis=2)  # the pool is sorted by value
        within = np.take_along_axis(were_open, by_value[..., None], axis=2)[..., 0]
        reasons = np.where(best == by_value, Reason.VALUE, np.where(within, Reason.DIVERSITY, Reason.CAP))
        return places.T, reasons.T
