"""The demo, small: the same code with fewer steps; its table, its picture, and that it resumes."""

from keylayers.cli import demo


def test_the_demo_tells_the_whole_story_and_resumes(tmp_path, monkeypatch, capsys):
    for name, value in (("STAGE_ONE_STEPS", 2), ("MASK_STEPS", 2), ("TUNE_STEPS", 2), ("RECORDS", 16), ("HELD_OUT", 8)):
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "BATCH", 2)
    monkeypatch.setattr(demo, "STYLES", demo.STYLES[:2])
    monkeypatch.setattr(demo, "CRITERIA", ("path_integral", "delta_norm"))
    monkeypatch.setattr(demo, "SETTINGS", {"points": 1})
    monkeypatch.setattr(demo, "ARMS", demo.ARMS[:2])
    demo.run_demo(tmp_path / "demo", seeds=2, fresh=False)
    first = capsys.readouterr().out
    for arm in demo.ARMS:
        assert arm in first
    assert "chance" in first and "held-out loss" in first
    assert (tmp_path / "demo" / "scores.png").stat().st_size > 10_000
    assert (tmp_path / "demo" / "tuning" / "tuned" / "adapter_config.json").is_file()
    assert first.splitlines()[-1] == f"report in {tmp_path / 'demo' / 'report.html'}"
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert all(arm in page for arm in demo.ARMS) and page.count('<b class="c') == 2 * 2 * (12 * 7 + 1)
    demo.run_demo(tmp_path / "demo", seeds=2, fresh=False)
    again = capsys.readouterr().out
    tables = [text[text.index("layers chosen by") : text.index("before training")] for text in (first, again)]
    assert tables[0] == tables[1]
