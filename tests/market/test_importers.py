"""Importers, on small files in the publishers' formats and, where they are at hand, on the real ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import coo_matrix, save_npz

from market.dataset import write_tables
from market.importers import IMPORTERS, ImportProblem, read
from market.importers.reading import integers, read_text
from market.outcomes import OUTCOMES
from market.tables import Tables


def put(folder: Path, **files: str) -> Path:
    """Write text files, named by their stem."""
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def rows(tables: Tables, *columns: str) -> list[tuple]:
    return list(tables.impressions[list(columns)].itertuples(index=False, name=None))


# XMarket


def xmarket(folder: Path, **changes: str) -> Path:
    header = "userId itemId rate date\n"
    files = {
        "de_5core": f"{header}A X 5.0 2020-01-02\nA Y 1.0 2020-01-01\nB X 4.0 2019-12-31\n",
        "uk_5core": f"{header}A X 3.0 2018-05-05\nC Z 2.0 2018-05-05\nC Z 5.0 2018-05-05\n",
    }
    return put(folder, **(files | changes))


def test_xmarket_rows_are_orders_with_their_rating_and_day(tmp_path):
    tables = read("xmarket", xmarket(tmp_path))
    assert (tables.feedback, tables.split) == ("positives", "leave_last")
    assert set(tables.impressions["market"]) == {"DE", "GB"}
    german = tables.impressions.query("market == 'DE'")
    assert german["time"].tolist() == [1_577_750_400, 1_577_836_800, 1_577_923_200]
    assert german["rating"].tolist() == [4.0, 1.0, 5.0]
    assert tables.impressions["order"].eq(1).all()


def test_xmarket_items_carry_across_markets_and_people_do_not(tmp_path):
    tables = read("xmarket", xmarket(tmp_path))
    sold = {row.content_id: list(row.markets) for row in tables.contents.itertuples()}
    assert sold == {"X": ["DE", "GB"], "Y": ["DE"], "Z": ["GB"]}
    assert sorted(tables.users["user_id"]) == ["DE:A", "DE:B", "GB:A", "GB:C"]
    assert set(tables.contents["kind"]) == {"product"}


def test_xmarket_keeps_repeated_rows_in_the_order_of_the_file(tmp_path):
    tables = read("xmarket", xmarket(tmp_path))
    repeated = tables.impressions.query("user_id == 'GB:C'")
    assert repeated["rating"].tolist() == [2.0, 5.0]


def test_xmarket_reads_the_markets_that_are_there(tmp_path):
    header = "userId itemId rate date\n"
    tables = read("xmarket", put(tmp_path, jp_5core=f"{header}A X 5.0 2020-01-02\n"))
    assert tables.users["market"].tolist() == ["JP"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "user item rate date\nA X 5.0 2020-01-02\n",
            r"de_5core\.txt: line 1 names no column userId, itemId",
        ),
        ("userId itemId rate date\nA X 5.0\n", "line 2 has 3 fields, expected 4"),
        ("userId itemId rate date\nA X five 2020-01-02\n", "line 2, column rate: 'five'"),
        (
            "userId itemId rate date\nA X 5 2020-01-02\nA X 5 02.01.2020\n",
            "line 3, column date: '02.01.2020'",
        ),
        ("userId itemId rate date\nA X 5 2020-01-02\n Y 5 2020-01-02\n", "line 3, column userId: '' is not"),
        ("userId itemId rate date\n", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_xmarket_says_which_line_is_wrong(tmp_path, text, said):
    with pytest.raises(ImportProblem, match=said):
        read("xmarket", xmarket(tmp_path, de_5core=text))


def test_xmarket_reads_markets_without_a_profile_and_names_what_is_no_market(tmp_path):
    one = "userId itemId rate date\nA X 5 2020-01-02\n"
    tables = read("xmarket", xmarket(tmp_path, nl_5core=one, au_5core=one))
    assert {"NL:A", "AU:A"} <= set(tables.users["user_id"])
    assert {"AU", "NL"} <= set(tables.contents.set_index("content_id").loc["X", "markets"])
    with pytest.raises(ImportProblem, match=r"qq_5core\.txt: there is no market QQ.*Known are ID, TH"):
        read("xmarket", xmarket(tmp_path, qq_5core=one))


def test_xmarket_wants_at_least_one_market(tmp_path):
    with pytest.raises(ImportProblem, match=r"no file <cc>_5core\.txt"):
        read("xmarket", tmp_path)


# Taobao


def taobao(folder: Path, **changes: str) -> Path:
    files = {"train": "1 1\n1 2\n2 3\n", "valid": "1 2\n", "test": "2 4\n", "cart": "1 1\n2 5\n"}
    return put(folder, **(files | changes))


def test_taobao_training_does_not_contain_validation(tmp_path):
    tables = read("taobao", taobao(tmp_path))
    buys = tables.impressions.query("order == 1")
    assert list(buys[["user_id", "content_id", "split"]].itertuples(index=False, name=None)) == [
        ("1", "1", "train"),
        ("2", "3", "train"),
        ("1", "2", "valid"),
        ("2", "4", "test"),
    ]


def test_taobao_carts_are_training_rows_of_their_own(tmp_path):
    tables = read("taobao", taobao(tmp_path))
    carts = tables.impressions.query("cart == 1")
    assert set(carts["split"]) == {"train"}
    assert carts["content_id"].tolist() == ["1", "5"]
    assert carts["order"].eq(0).all()
    assert "time" not in tables.impressions
    assert tables.contents["content_id"].tolist() == ["1", "2", "3", "4", "5"]
    assert (tables.feedback, tables.split) == ("positives", "given")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cart": "1 1\n2\n"}, r"cart\.txt: line 2 has 1 fields"),
        ({"test": "1 1 1\n"}, r"test\.txt: line 1 has 3 fields"),
        ({"valid": "1 2\n\n"}, r"valid\.txt: line 2 has 0 fields"),
        ({"train": "1 x\n"}, r"train\.txt: line 1, column item: 'x' is not a whole number"),
        ({"train": "1 1\n-2 1\n-3 1\n"}, r"train\.txt: line 2 \(and 1 more\), column user: '-2'"),
        ({"train": "1 1.5\n"}, "column item: '1.5'"),
        ({"train": "1 99999999999999999999\n"}, "column item: '99999999999999999999'"),
        ({"train": ""}, r"train\.txt has no rows"),
    ],
)
def test_a_malformed_line_of_pairs_is_named(tmp_path, changes, said):
    with pytest.raises(ImportProblem, match=said):
        read("taobao", taobao(tmp_path, **changes))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (taobao(tmp_path) / "test.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ImportProblem, match="not UTF-8"):
        read("taobao", tmp_path)


# TikTok


def tiktok(folder: Path, *, videos: int = 4, **changes: str) -> Path:
    for name in ("audio", "image"):
        np.save(folder / f"{name}_feat.npy", np.arange(videos * 2, dtype=np.float16).reshape(videos, 2))
    return put(folder, **({"train": "0 0\n0 1\n", "valid": "0 2\n", "test": "1 0\n"} | changes))


def test_tiktok_videos_have_their_vectors_seen_or_not(tmp_path):
    tables = read("tiktok", tiktok(tmp_path))
    assert tables.contents["content_id"].tolist() == ["0", "1", "2", "3"]
    assert tables.contents["v_audio"][2].tolist() == [4.0, 5.0]
    assert tables.contents["v_image"][3].dtype == np.float32
    assert set(tables.contents["kind"]) == {"video"}
    assert rows(tables, "user_id", "content_id", "split", "click")[-1] == ("1", "0", "test", 1)


def test_tiktok_names_an_item_without_vectors(tmp_path):
    with pytest.raises(ImportProblem, match=r"test\.txt: line 2, column item: 9 is beyond the 4 rows"):
        read("tiktok", tiktok(tmp_path, test="1 0\n1 9\n"))


def test_tiktok_feature_files_have_one_length(tmp_path):
    np.save(tiktok(tmp_path) / "image_feat.npy", np.zeros((5, 2)))
    with pytest.raises(ImportProblem, match=r"audio_feat\.npy has 4 rows, image_feat\.npy 5"):
        read("tiktok", tmp_path)


def test_tiktok_loads_no_pickled_objects(tmp_path):
    np.save(tiktok(tmp_path) / "audio_feat.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ImportProblem, match=r"audio_feat\.npy is not a NumPy array"):
        read("tiktok", tmp_path)


def test_tiktok_vectors_are_a_matrix_of_floats(tmp_path):
    np.save(tiktok(tmp_path) / "audio_feat.npy", np.zeros(4))
    with pytest.raises(ImportProblem, match=r"audio_feat\.npy holds float64 \(4,\)"):
        read("tiktok", tmp_path)


# Gowalla


def gowalla(folder: Path, *, test: str = "0 2\n1 0 1\n", links=((0, 0), (0, 1), (1, 2))) -> Path:
    users, items = 2, 3
    above = np.array([(user, users + item) for user, item in links])
    both = np.concatenate([above, above[:, ::-1]])
    shape = (users + items, users + items)
    save_npz(folder / "s_adj_mat.npz", coo_matrix((np.ones(len(both)), both.T), shape).tocsr())
    return put(folder, test=test)


def test_gowalla_reads_the_graph_as_training_and_the_lines_as_test(tmp_path):
    tables = read("gowalla", gowalla(tmp_path))
    assert rows(tables, "user_id", "content_id", "split") == [
        ("0", "0", "train"),
        ("0", "1", "train"),
        ("1", "2", "train"),
        ("0", "2", "test"),
        ("1", "0", "test"),
        ("1", "1", "test"),
    ]
    assert tables.contents["content_id"].tolist() == ["0", "1", "2"]


@pytest.mark.parametrize("line", ["7 1", "1 3", "1 x", "", "1 -1"])
def test_gowalla_names_a_wrong_line_of_the_test_file(tmp_path, line):
    with pytest.raises(ImportProblem, match=r"test\.txt: line 2 is not a user below 2 and items below 3"):
        read("gowalla", gowalla(tmp_path, test=f"0 2\n{line}\n"))


def test_gowalla_refuses_a_graph_that_links_users_to_users(tmp_path):
    friends = coo_matrix((np.ones(2), ([0, 1], [1, 2])), (3, 3))
    save_npz(gowalla(tmp_path) / "s_adj_mat.npz", friends.tocsr())
    with pytest.raises(ImportProblem, match="users first"):
        read("gowalla", tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"not a zip",
        lambda whole: whole[:-100],
        lambda whole: whole[:400] + bytes(200) + whole[600:],
    ],
    ids=["another file", "cut", "changed"],
)
def test_gowalla_refuses_a_file_that_is_no_matrix(tmp_path, damage):
    file = gowalla(tmp_path).joinpath("s_adj_mat.npz")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ImportProblem, match="not a sparse matrix"):
        read("gowalla", tmp_path)


# KuaiRand

_LOG = (
    "user_id video_id time_ms is_click is_follow is_comment is_forward long_view "
    "play_time_ms duration_ms label"
)


def kuairand(folder: Path, *, log: str | None = None) -> Path:
    users = pd.DataFrame({"user_id": [1, 9], "user_active_degree": ["full_active", "day_new"]})
    for name in ("is_lowactive_period", "is_live_streamer", "is_video_author"):
        users[name] = 0
    for name in ("follow_user_num", "fans_user_num", "friend_user_num", "register_days"):
        users[name], users[f"{name}_range"] = [250, 3], ["(250,500]", "0"]
    for k in range(18):
        users[f"onehot_feat{k}"] = [k, None]
    users.to_csv(folder / "user_features_pure.csv", index=False)
    videos = {
        "video_id": [70],
        "author_id": [5],
        "video_type": ["NORMAL"],
        "upload_dt": ["2022-04-10"],
        "upload_type": ["Kmovie"],
        "visible_status": [0.0],
        "video_duration": [8000.0],
        "server_width": [720.0],
        "server_height": [None],
        "music_id": [3],
        "music_type": [None],
        "tag": ["39,2"],
    }
    pd.DataFrame(videos).to_csv(folder / "video_features_basic_pure.csv", index=False)
    lines = [
        _LOG.replace(" ", "\t"),
        "1\t70\t1649581149987\t1\t0\t1\t0\t1\t46186\t8000\t1",
        "2\t71\t1649581148000\t0\t1\t0\t1\t0\t500\t0\t0",
    ]
    name = "kuairand27k_like_hate_kcore15.tsv"
    (folder / name).write_text("\n".join(lines) + "\n" if log is None else log)
    return folder


def test_kuairand_outcomes_are_those_of_the_log(tmp_path):
    tables = read("kuairand", kuairand(tmp_path))
    assert (tables.feedback, tables.split) == ("impressions", "time")
    hated, liked = tables.impressions.to_dict("records")  # in the order of time
    assert hated == {
        "user_id": "2",
        "content_id": "71",
        "market": "XX",
        "time": 1_649_581_148,
        "watch_s": 0.5,
        "click": 0,
        "like": 0,
        "follow": 1,
        "comment": 0,
        "share": 1,
        "long_view": 0,
        "negative": 1,
    }
    assert (liked["time"], liked["like"], liked["negative"]) == (1_649_581_149, 1, 0)
    assert liked["watch_s"] == pytest.approx(46.186)


def test_kuairand_attributes_are_known_before_the_exposure(tmp_path):
    tables = read("kuairand", kuairand(tmp_path))
    seen = tables.contents.set_index("content_id").loc["70"]
    assert (seen["duration_s"], seen["created_at"], seen["x_tag"]) == (8.0, 1_649_548_800, "39,2")
    assert (seen["x_server_width"], seen["x_music_type"]) == (720.0, None)
    assert np.isnan(seen["x_server_height"])
    user = tables.users.set_index("user_id").loc["1"]
    assert (user["x_follow_user_num"], user["x_follow_user_num_range"]) == (250.0, "(250,500]")
    attributes = {name.removeprefix("x_") for name in [*tables.users, *tables.contents]}
    assert not attributes & {*OUTCOMES, "play_time_ms", "label", "comment_stay_time", "is_profile_enter"}


def test_kuairand_unknown_users_videos_and_lengths_stay_unknown(tmp_path):
    tables = read("kuairand", kuairand(tmp_path))
    user = tables.users.set_index("user_id").loc["2"]
    assert user.drop("market").isna().all()
    video = tables.contents.set_index("content_id").loc["71"]
    assert video.drop(["kind", "markets"]).isna().all()  # a length of 0 is unknown too
    assert sorted(tables.users["user_id"]) == ["1", "2"]  # user 9 never appears in the log


def test_a_row_is_named_by_its_line_where_quoted_fields_go_over_several(tmp_path):
    file = tmp_path / "file.csv"
    file.write_text('name,number\n"two\nlines",1\n"three\n\nlines",2\nbad,x\n')
    text = read_text(file, ["number", "name"], ",", header=True)
    assert dict(text["name"]) == {2: "two\nlines", 4: "three\n\nlines", 7: "bad"}
    with pytest.raises(ImportProblem, match="line 7, column number: 'x'"):
        integers(file, text["number"])
    file.write_text('name,number\n"two\nlines",1\nbad\n')
    with pytest.raises(ImportProblem, match="line 4 has 1 fields"):
        read_text(file, ["number", "name"], ",", header=True)


def test_a_file_that_was_saved_on_windows_has_the_same_columns_and_rows(tmp_path):
    file = tmp_path / "file.csv"
    file.write_bytes(b"name,number\none,1\ntwo,2\n")
    plain = read_text(file, ["name", "number"], ",", header=True)
    file.write_bytes(b"\xef\xbb\xbfname,number\r\none,1\r\ntwo,2\r\n")
    pd.testing.assert_frame_equal(read_text(file, ["name", "number"], ",", header=True), plain)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (_LOG.replace(" label", "").replace(" ", "\t") + "\n", "names no column label"),
        (_LOG.replace(" ", "\t") + "\n" + "\t".join(["1"] * 10) + "\tyes\n", "line 2, column label: 'yes'"),
        (_LOG.replace(" ", "\t") + "\n1\t2\n", "line 2 has 2 fields, expected 11"),
    ],
)
def test_kuairand_says_what_is_wrong_with_the_log(tmp_path, log, said):
    with pytest.raises(ImportProblem, match=said):
        read("kuairand", kuairand(tmp_path, log=log))


# All of them

WRITERS = {"gowalla": gowalla, "kuairand": kuairand, "taobao": taobao, "tiktok": tiktok, "xmarket": xmarket}


@pytest.mark.parametrize("name", IMPORTERS)
def test_what_is_imported_can_be_stored_and_read_again(tmp_path, name):
    (tmp_path / "raw").mkdir()
    tables = read(name, WRITERS[name](tmp_path / "raw"))
    stored = write_tables(tmp_path / "stored", tables)
    assert len(stored.impressions()) == len(tables.impressions)
    assert stored.contents()["content_id"].tolist() == tables.contents["content_id"].tolist()
    assert stored.markets == sorted(set(tables.users["market"]))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (name, file)
        for name, files in {
            "gowalla": ["s_adj_mat.npz", "test.txt"],
            "kuairand": ["kuairand27k_like_hate_kcore15.tsv", "user_features_pure.csv"],
            "taobao": ["train.txt", "cart.txt"],
            "tiktok": ["valid.txt", "image_feat.npy"],
        }.items()
        for file in files
    ],
)
def test_a_missing_file_is_named(tmp_path, name, file):
    (WRITERS[name](tmp_path) / file).unlink()
    with pytest.raises(ImportProblem, match=f"{file} is missing"):
        read(name, tmp_path)


def test_an_unknown_importer_and_an_unknown_folder_are_named(tmp_path):
    with pytest.raises(ImportProblem, match="no importer 'netflix'; there are gowalla"):
        read("netflix", tmp_path)
    with pytest.raises(ImportProblem, match="is no folder"):
        read("taobao", tmp_path / "nowhere")


# The real files


def real(data_root: Path, name: str) -> Tables:
    if not (data_root / name).is_dir():
        pytest.skip(f"no {name} in {data_root}")
    return read(name, data_root / name)


def counts(tables: Tables) -> tuple[int, int, int]:
    return len(tables.users), len(tables.contents), len(tables.impressions)


@pytest.mark.real_data
def test_real_gowalla_has_the_counts_of_lightgcn(data_root):
    tables = real(data_root, "gowalla")
    assert counts(tables) == (29_858, 40_981, 1_027_370)
    assert tables.impressions["split"].value_counts().to_dict() == {"train": 810_128, "test": 217_242}


@pytest.mark.real_data
def test_real_tiktok_has_its_published_counts(data_root):
    tables = real(data_root, "tiktok")
    assert counts(tables) == (9_308, 6_710, 68_722)
    assert {len(vector) for vector in tables.contents["v_audio"]} == {128}


@pytest.mark.real_data
def test_real_taobao_has_every_item_that_was_bought_or_carted(data_root):
    tables = real(data_root, "taobao")
    # Of the published 11,953 items 12 were only viewed, and views are not in the files.
    assert counts(tables) == (15_449, 11_941, 303_105)
    assert tables.impressions.query("order == 1")["split"].value_counts().to_dict() == {
        "train": 76_731,
        "valid": 15_449,
        "test": 15_449,
    }


@pytest.mark.real_data
def test_real_kuairand_has_its_published_counts(data_root):
    tables = real(data_root, "kuairand")
    assert counts(tables) == (664, 9_359, 41_828)
    assert tables.impressions["like"].sum() == 33_745
    assert tables.users.notna().all().loc["x_register_days"]


@pytest.mark.real_data
def test_real_xmarket_has_its_markets_and_shared_items(data_root):
    tables = real(data_root, "xmarket")
    sizes = tables.users["market"].value_counts().to_dict()
    assert {code: sizes[code] for code in ("CA", "DE", "GB", "IN", "JP")} == {
        "CA": 5_675,
        "DE": 2_373,
        "GB": 4_847,
        "IN": 239,
        "JP": 487,
    }
    assert tables.impressions["market"].value_counts()["DE"] == 22_247  # repeated rows are kept
    assert (tables.contents["markets"].map(len) > 1).sum() >= 2_933
