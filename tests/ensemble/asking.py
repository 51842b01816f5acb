"""Requests to a release of the small world: of real users and contents, and every way to break one."""

from __future__ import annotations

import urllib.request

import numpy as np

from ensemble.cascade import Cascade
from ensemble.errors import Code
from ensemble.release import Release
from ensemble.server import TritonServer
from market.kinds import KINDS

WISHES = ("kinds", "categories", "exclude_categories")


def requests(release: Release, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random requests: users known and unknown, mixed markets, sessions, exclusions, diversities."""
    random, plan = np.random.default_rng(seed), Cascade(release).plan
    users = np.array([*release.array("user_id.npy"), *["nobody"] * 20], object)
    contents = np.array([*release.array("text_content_id.npy"), *[""] * 50], object)
    return {
        "user_id": random.choice(users, rows),
        "market": random.choice(np.array(plan.markets, object), rows),
        "time": plan.as_of + random.integers(-200_000, 200_000, rows),
        "history": random.choice(contents, (rows, 4)),
        "exclude": random.choice(contents, (rows, 6)),
        "shown": random.choice(contents, (rows, 8)),
        "diversity": random.random(rows).astype(np.float32),
        "seed": random.integers(-(2**63), 2**63, rows),
        "explain": np.zeros(rows, bool),
        "exclude_sellers": random.choice([*release.array("seller_ids.npy"), "nobody", ""], (rows, 2)).astype(
            object
        ),
        "languages": random.choice(["", "", "", "", "", "id", "en", "pt-PT", "xx"], (rows, 2)).astype(object),
        **{name: np.full((rows, 0), "", object) for name in WISHES},
    }


def wishes(release: Release, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors by which random requests ask for some kinds and categories alone; one in three asks for all."""
    random = np.random.default_rng(seed)
    categories = sorted({*release.array("text_category.npy").tolist()} - {""})
    made = {
        "kinds": random.choice(KINDS, (rows, 2)),
        "categories": random.choice([*categories, "none"], (rows, 3)),
        "exclude_categories": random.choice([*categories, "none"], (rows, 2)),
    }
    said = random.integers(0, 3, (rows, 1))
    return {
        name: np.where((said > 0) & (random.random(names.shape) < 0.5), names, "").astype(object)
        for name, names in made.items()
    }


def metrics(server: TritonServer) -> dict[str, float]:
    """What a server's metrics port tells, by series."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=120) as page:
        lines = [line for line in page.read().decode().splitlines() if line and not line.startswith("#")]
    return {of: float(value) for of, _, value in (line.rpartition(" ") for line in lines)}


def change(name, value):
    """Replace one tensor; a function is given the old one, None removes it."""

    def changed(request):
        rest = {key: array for key, array in request.items() if key != name}
        return rest if value is None else rest | {name: value(request[name]) if callable(value) else value}

    return changed


def at_row_1(value):
    def changed(array):
        array = array.copy()
        array[1] = value
        return array

    return changed


BROKEN = {
    "a missing tensor": (change("market", None), Code.INVALID_ARGUMENT),
    "a matrix for a vector": (change("time", lambda a: np.stack([a, a], axis=1)), Code.INVALID_ARGUMENT),
    "a tensor of another dtype": (change("diversity", lambda a: a.astype(np.float64)), Code.INVALID_ARGUMENT),
    "numbers for text": (change("user_id", lambda a: np.arange(len(a))), Code.INVALID_ARGUMENT),
    "a shorter tensor": (change("time", lambda a: a[:-1]), Code.INVALID_ARGUMENT),
    "no rows": (lambda r: {name: array[:0] for name, array in r.items()}, Code.INVALID_ARGUMENT),
    "an unknown market": (change("market", at_row_1("ZZ")), Code.NOT_FOUND),
    "a market whose name no message holds": (change("market", at_row_1("京" * 20_000)), Code.NOT_FOUND),
    "an empty market": (change("market", at_row_1("")), Code.NOT_FOUND),
    "a diversity that is NaN": (change("diversity", at_row_1(np.nan)), Code.INVALID_ARGUMENT),
    "an endless diversity": (change("diversity", at_row_1(np.inf)), Code.INVALID_ARGUMENT),
    "a diversity above 1": (change("diversity", at_row_1(1.5)), Code.INVALID_ARGUMENT),
    "a negative diversity": (change("diversity", at_row_1(-0.5)), Code.INVALID_ARGUMENT),
    "a negative time": (change("time", at_row_1(-1)), Code.INVALID_ARGUMENT),
    "a time in 2100": (change("time", at_row_1(4_102_444_800)), Code.INVALID_ARGUMENT),
    "text that is not UTF-8": (change("user_id", at_row_1(b"\xff\xfe")), Code.INVALID_ARGUMENT),
}
"""What is wrong → what it does to sound requests, and the code that answers it."""
