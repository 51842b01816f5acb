"""What is kept tells whether the same code made it."""

from workflows import kept


def test_the_sum_of_code_changes_with_any_line_of_any_file(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    for file in ("models/a.py", "models/deep/b.py", "market/c.py", "models/notes.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"# {file}\n")
    files = kept.sources("models", "market")
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        "models/a.py",
        "models/deep/b.py",
        "market/c.py",
    ]
    before = kept.code_of(files)
    assert kept.code_of(kept.sources("models", "market")) == before
    (tmp_path / "models/notes.md").write_text("other")
    assert kept.code_of(kept.sources("models", "market")) == before
    sums = {before, kept.code_of(kept.sources("models"))}
    for file in files:
        with file.open("a") as code:
            code.write("pass\n")
        sums.add(kept.code_of(kept.sources("models", "market")))
    (tmp_path / "models/d.py").touch()
    sums.add(kept.code_of(kept.sources("models", "market")))
    assert len(sums) == 6
