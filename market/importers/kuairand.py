"""KuaiRand: Kuaishou short videos that people liked or hated (Gao et al., CIKM 2022).

    kuairand27k_like_hate_kcore15.tsv    the interactions, with a header
    user_features_pure.csv               features of users, with a header
    video_features_basic_pure.csv        features of some of the videos, with a header

What is known before an exposure becomes an attribute; what people did is an outcome alone. A liked row has
like = 1, a hated one negative = 1. Users and videos that the feature files lack have null attributes; those
that no row of the interactions names are left out.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from market.importers.reading import dates, find, integers, numbers, read_text
from market.tables import Tables, validate

_FLAGS = {
    "click": "is_click",
    "follow": "is_follow",
    "comment": "is_comment",
    "share": "is_forward",
    "long_view": "long_view",
}
_USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_USER_CATEGORIES = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{k}" for k in range(18)),
)
_VIDEO_NUMBERS = ("server_width", "server_height")
_VIDEO_CATEGORIES = (
    "author_id",
    "video_type",
    "upload_type",
    "visible_status",
    "music_id",
    "music_type",
    "tag",
)


def read(folder: Path) -> Tables:
    """The data set in `folder`; raises `ImportProblem`."""
    path = find(folder, "kuairand27k_like_hate_kcore15.tsv")
    log = read_text(
        path,
        ["user_id", "video_id", "time_ms", "play_time_ms", "duration_ms", "label", *_FLAGS.values()],
        "\t",
        header=True,
    )
    liked = integers(path, log["label"])
    impressions = pd.DataFrame(
        {
            "user_id": log["user_id"],
            "content_id": log["video_id"],
            "market": "XX",
            "time": integers(path, log["time_ms"]) // 1000,
            "watch_s": integers(path, log["play_time_ms"]) / 1000,
            **{flag: integers(path, log[column]) for flag, column in _FLAGS.items()},
            "like": liked,
            "negative": 1 - liked,
        }
    ).sort_values("time", kind="stable")
    duration = integers(path, log["duration_ms"]) / 1000
    lengths = pd.DataFrame(
        {"content_id": log["video_id"], "duration_s": np.where(duration > 0, duration, np.nan)}
    )
    users = pd.DataFrame({"user_id": log["user_id"].unique(), "market": "XX"})
    contents = lengths.groupby("content_id", sort=False)["duration_s"].first().reset_index()
    contents["kind"] = "video"
    contents["markets"] = [["XX"]] * len(contents)
    return validate(
        Tables(
            name="kuairand",
            feedback="impressions",
            split="time",
            users=users.merge(_user_features(folder), on="user_id", how="left"),
            contents=contents.merge(_video_features(folder), on="content_id", how="left"),
            impressions=impressions,
        )
    )


def _user_features(folder: Path) -> pd.DataFrame:
    path = find(folder, "user_features_pure.csv")
    text = read_text(path, ["user_id", *_USER_NUMBERS, *_USER_CATEGORIES], ",", header=True)
    return _features(path, text, _USER_NUMBERS, _USER_CATEGORIES).assign(user_id=text["user_id"])


def _video_features(folder: Path) -> pd.DataFrame:
    path = find(folder, "video_features_basic_pure.csv")
    text = read_text(path, ["video_id", "upload_dt", *_VIDEO_NUMBERS, *_VIDEO_CATEGORIES], ",", header=True)
    return _features(path, text, _VIDEO_NUMBERS, _VIDEO_CATEGORIES).assign(
        content_id=text["video_id"], created_at=dates(path, text["upload_dt"], optional=True)
    )


def _features(
    path: Path, text: pd.DataFrame, continuous: tuple[str, ...], categorical: tuple[str, ...]
) -> pd.DataFrame:
    columns = {
        f"x_{name}": numbers(path, text[name], optional=True).astype(np.float32) for name in continuous
    }
    for name in categorical:
        columns[f"x_{name}"] = text[name].where(text[name] != "", None).to_numpy()
    return pd.DataFrame(columns, index=text.index)
