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
        self.caps = (self.plan.config.seller_cap, self.plan.config.category_cap)

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
        value = self.plan.value(probabilities)
        value = np.where(candidates >= 0, value, -np.inf)
        pool = np.argsort(-value, axis=1, kind="stable")[:, : self.plan.config.pool]
        chosen, reason = self._choose(
            np.take_along_axis(candidates, pool, 1), np.take_along_axis(value, pool, 1), diversity
        )
        filled = chosen >= 0
        place = np.take_along_axis(pool, np.maximum(chosen, 0), axis=1)

        def slate(array: np.ndarray) -> np.ndarray:
            picked = np.take_along_axis(array, place.reshape(place.shape + (1,) * (array.ndim - 2)), axis=1)
            return np.where(filled.reshape(filled.shape + (1,) * (array.ndim - 2)), picked, 0).astype(
                array.dtype
            )

        ids = self.content_id[slate(candidates)]
        return {
            "content_id": np.where(filled, ids, "").astype(object),
            "slate_channel": slate(channel),
            "slate_reason": np.where(filled, reason, 0).astype(np.int32),
            "slate_retrieval_rank": np.where(filled, place + 1, 0).astype(np.int32),
            "slate_retrieval_score": slate(retrieval_score),
            "slate_probabilities": slate(probabilities),
            "slate_value": np.where(filled, np.take_along_axis(value, place, 1), 0).astype(np.float32),
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
        present = candidates >= 0
        rows = np.maximum(candidates, 0)
        vectors = self.vectors[rows]
        some = present.any(axis=1, keepdims=True)
        low = np.where(some, np.min(value, axis=1, keepdims=True, where=present, initial=np.inf), 0)
        high = np.where(some, np.max(value, axis=1, keepdims=True), 0)
        worth = np.where(present, value - low, 0) / np.maximum(high - low, 1e-9)
        groups = self.groups[:, rows]
        free, capped = present.copy(), np.zeros_like(present)
        likeness = np.zeros((batch, size), np.float32)
        each = np.arange(batch)
        slate = self.plan.config.slate
        places, reasons = np.full((batch, slate), NONE), np.zeros((batch, slate), np.int64)
        for position in range(slate):
            gain = (1 - diversity[:, None]) * worth - diversity[:, None] * likeness
            open_ = free & ~capped
            open_ = np.where(open_.any(axis=1, keepdims=True), open_, free)
            best = np.argmax(np.where(open_, gain, -np.inf), axis=1)
            left = free.any(axis=1)
            by_value = np.argmax(free, axis=1)  # the pool is sorted by value
            why = np.where(
                best == by_value, Reason.VALUE, np.where(open_[each, by_value], Reason.DIVERSITY, Reason.CAP)
            )
            places[:, position] = np.where(left, best, NONE)
            reasons[:, position] = why
            free[each, best] = False
            alike = np.einsum("bpd,bd->bp", vectors, vectors[each, best])
            likeness = np.maximum(likeness, alike) if position else alike
            for group, cap in zip(groups, self.caps):
                own = group[each, best][:, None]
                chosen = places[:, : position + 1]
                count = ((np.take_along_axis(group, np.maximum(chosen, 0), 1) == own) & (chosen >= 0)).sum(
                    axis=1
                )
                taken = (group == own) & (own >= 0) & (count >= cap)[:, None]
                capped |= taken
        return places, reasons
