"""One file has every knob; what it cannot mean is said in one line with the knob's name."""

import dataclasses
import sys
from pathlib import Path

import pytest

from ensemble.serving import ServeConfig
from pasar.settings import FILE, SettingsError, load, load_build, load_serve, render, schema

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[2]


def knobs(kind, config, section):
    """(section, knob) of every field, nested dataclasses included."""
    for field in dataclasses.fields(kind):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from knobs(type(value), value, (*section, field.name))
        else:
            yield section, field.name


def written(tmp_path, text):
    path = tmp_path / "some.toml"
    path.write_text(text)
    return path


def test_the_printed_file_holds_every_knob_with_a_comment_and_means_the_defaults(tmp_path):
    text = render()
    parsed = tomllib.loads(text)
    lines = text.splitlines()
    for name, kind in schema().items():
        for section, knob in knobs(kind, kind(), (name,)):
            table = parsed
            for part in section:
                table = table[part]
            assert knob in table, (section, knob)
            places = [i for i, line in enumerate(lines) if line.startswith(f"{knob} = ")]
            assert all(lines[place - 1].startswith("# ") for place in places), knob
    settings = load(written(tmp_path, text))
    for name, kind in schema().items():
        assert getattr(settings, name) == kind()


def test_the_repository_s_file_is_the_printed_one():
    assert (REPOSITORY / FILE).read_text() == render(), "write it again: pasar config > pasar.toml"


def test_a_knob_changes_alone(tmp_path):
    settings = load(written(tmp_path, "[build.cascade]\nslate = 5\n[world]\nmarkets = ['GB']\n"))
    assert settings.build.cascade.slate == 5
    assert settings.build.cascade.pool == 60
    assert settings.world.markets == ("GB",)
    assert settings.build.two_tower == schema()["build"]().two_tower


@pytest.mark.parametrize(
    ("cores", "knobs", "processes"),
    [
        (8, {}, 8),
        (1, {}, 2),
        (8, {"one_process": False}, 2),
        (8, {"instances": 3}, 3),
        (8, {"instances": 1, "queue_ms": 0}, 1),
    ],
)
def test_a_step_has_two_processes_or_requests_wait_for_ever(monkeypatch, cores, knobs, processes):
    monkeypatch.setattr("ensemble.serving.cores", lambda: cores)
    assert ServeConfig(**knobs).processes == processes


def test_one_process_whose_queue_has_a_limit_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="take instances of 2 or more, or queue_ms = 0"):
        load_serve(written(tmp_path, "[serve]\ninstances = 1\n"))


def test_the_file_of_the_working_folder_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_serve() == ServeConfig()
    (tmp_path / FILE).write_text("[serve]\ngrpc_port = 9001\n")
    assert load_serve().grpc_port == load().serve.grpc_port == 9001


def test_a_byte_order_mark_is_no_part_of_the_first_section(tmp_path):
    assert load(written(tmp_path, "\ufeff[build]\nseed = 3")).build.seed == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[serve]\ngrpc_prot = 1", "[serve] 'grpc_prot' is no knob; did you mean 'grpc_port'?"),
        ("[sreve]\ngrpc_port = 1", "'sreve' is no knob; did you mean 'serve'?"),
        ("[build.rankr]\nepochs = 1", "[build] 'rankr' is no knob; did you mean 'ranker'?"),
        ("[build.ranker]\nepoch = 1", "[build.ranker] 'epoch' is no knob; did you mean 'epochs'?"),
        ("[world]\nzzz = 1", "[world] 'zzz' is no knob; there are contents, days"),
        ("[serve]\ngrpc_port = 'high'", "[serve] grpc_port: "),
        ("[serve]\ngrpc_port = 99999", "grpc_port is 99999; it must be from 0 to 65,535"),
        ("[serve]\nmax_batch = 0", "max_batch is 0; it must be at least 1"),
        ("[serve]\ndelay_us = -1", "delay_us is -1"),
        ("[build.ranker]\nepochs = 1.5", "[build] ranker.epochs: "),
        ("[build.two_tower]\nhidden = 'wide'", "two_tower.hidden"),
        ("[build]\nranker = 3", "ranker: "),
        ("[build.cascade]\nslate = 900", "slate 900 <= pool 60 <= candidates 100 <= retrieved 500 must hold"),
        ("[build.cascade]\nweights = { clik = 1.0 }", "cascade.weights has 'clik'"),
        ("[build.cascade]\nslots = [{ kind = 'story', most = 1 }]", "cascade.slots has kind 'story'"),
        ("[build.cascade]\nweights_for = { XY = { click = 1.0 } }", "cascade.weights_for has 'XY'"),
        ("[build.split]\nvalid_fraction = 2.0", "valid_fraction=2.0"),
        ("[world]\nmarkets = ['ZZ']", "no market 'ZZ'"),
        ("[world]\nmarkets = 'ID'", '[world] markets is "ID"; write a list, ["ID"]'),
        ("[serve.rules]\nforbidden_kinds = { DE = 'live' }", 'forbidden_kinds.DE is "live"; write a list'),
        (
            "[build.cascade]\nslots = { kind = 'live', most = 1 }",
            'cascade.slots is { kind = "live", most = 1 }; write a list, [{ kind = "live", most = 1 }]',
        ),
        ("[world]\nmarkets = 'a\"b'", r'markets is "a\"b"; write'),
        ("[world]\nstart = 2026-03-02", 'start is 2026-03-02 without quotes; write "2026-03-02"'),
        ("[world]\nusers = 1", "users must be a whole number of at least 5, got 1"),
        ("[serve]\nstartup_deadline_s = -1", "serve.startup_deadline_s is -1.0; it must be above 0"),
        ("[build]\nseed = -1", "build.seed is -1; it must be from 0 to 4,294,967,295"),
        ("[build.split]\nvalid_fraction = nan", "valid_fraction=nan"),
        ("[build.features]\nhistory_length = 0", "features.history_length is 0; it must be at least 1"),
        (
            "[build.features]\nhistory_length = 300",
            "features.seen_length is 200; it must be at least features.history_length, 300",
        ),
        ("[build.two_tower]\nhidden = [0]", "two_tower.hidden is (0,); it must be at least 1"),
        ("[build.two_tower]\ntemperature = nan", "two_tower.temperature is nan; it must be above 0"),
        ("[build.ranker]\nbatch_size = 0", "ranker.batch_size is 0; it must be at least 1"),
        ("[build.ranker]\ntop = []", "ranker.top is []; the interactions need a layer"),
        (
            "[build.cascade.fatigue]\ncontent_show = 9",
            "[build.cascade.fatigue] 'content_show' is no knob; did you mean 'content_shows'?",
        ),
        (
            "[build.cascade]\nslots = [{ kind = 'live', most = 1, witin = 3 }]",
            "[build.cascade.slots] 'witin' is no knob; did you mean 'within'?",
        ),
        ("[build]\nseed = true", "[build] seed is true; write a number"),
        (
            "[build.cascade.fatigue]\nwindow_h = false",
            "[build.cascade.fatigue] window_h is false; write a num",
        ),
        ("serve = 3", "'serve' is 3; write it as a section, [serve]"),
        ("[serve", "is not valid TOML"),
    ],
)
def test_what_a_file_cannot_mean_is_said_in_one_line(tmp_path, text, said):
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, text))
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "some.toml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [load, load_serve])
def test_a_file_that_is_not_there_is_named(tmp_path, read):
    with pytest.raises(SettingsError, match=r"none\.toml is no file; write one with `pasar config"):
        read(tmp_path / "none.toml")


def test_a_file_that_is_asked_for_by_the_usual_name_must_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"pasar\.toml is no file"):
        load_serve(Path(FILE))
    (tmp_path / FILE).mkdir()
    with pytest.raises(SettingsError, match=r"pasar\.toml is no file"):
        load_serve()


def test_a_data_set_s_knobs_do_not_hide_what_is_no_section(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / FILE).write_text("[build]\nitem_graph = 3\n")
    with pytest.raises(SettingsError, match="item_graph: "):
        load_build("taobao")


@pytest.mark.parametrize("text", ["[sreve]\nx = 1", "[serve]\nhots = 'x'", "[serve"])
def test_the_server_s_part_is_as_strict(tmp_path, text):
    with pytest.raises(SettingsError):
        load_serve(written(tmp_path, text))


def test_rules_of_markets_are_read_and_a_wrong_one_is_said(tmp_path):
    text = '[serve.rules]\nforbidden_categories = { ID = ["alcohol"], "*" = ["weapons"] }\n'
    rules = load_serve(written(tmp_path, text + 'languages = { BR = "spoken" }\n')).rules
    assert rules.forbidden_categories == {"ID": ("alcohol",), "*": ("weapons",)}
    assert rules.languages == {"BR": "spoken"}
    for wrong, said in (
        ('forbidden_kinds = { ID = ["rooms"] }', "has 'rooms'; there are video, live, product"),
        ('forbidden_sellers = { UK = ["s1"] }', "names market 'UK'"),
        ("forbidden_kind = {}", "'forbidden_kind' is no knob; did you mean 'forbidden_kinds'"),
    ):
        with pytest.raises(SettingsError, match=said):
            load_serve(written(tmp_path, f"[serve.rules]\n{wrong}\n"))


def test_what_a_data_sets_shape_asks_for_joins_the_working_folders_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = load().build
    assert load_build("kuairand") == default
    Path(FILE).write_text("[build.features]\nseen_length = 70\n")
    made = load_build("gowalla")
    assert (made.features.seen_length, made.features.history_length) == (70, 50)
    assert made.item_graph.events == 500
    named = load_build("gowalla", written(tmp_path, "[build.features]\nseen_length = 90\n"))
    assert named.features == dataclasses.replace(default.features, seen_length=90)
