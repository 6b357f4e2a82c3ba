"""`keylayers compare` of two leagues: from folders and files, and what is none."""

from keylayers.league.entrants import ENTRANTS
from keylayers.runs import write_json
from tests.league.tiny_leagues import league, rising

BLIND = [name for name, way in ENTRANTS.items() if way.share is None]


def test_the_command_compares_two_leagues_from_files_or_folders(cli, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        league(tmp_path / name / "league.json", rising(BLIND[:5]))
    for words in (("one", "other"), ("one", "other/league.json")):
        shown = cli("compare", *(tmp_path / word for word in words))
        assert shown.code == 0 and "all that both played" in shown.out and "1.00" in shown.out


def test_what_cannot_be_compared_says_why(cli, tmp_path):
    few = league(tmp_path / "few.json", rising(BLIND[:2]))
    damaged = league(tmp_path / "damaged.json", rising(BLIND[:5]))
    damaged.write_text(damaged.read_text().replace("4.0", "5.0"))
    write_json(tmp_path / "empty.json", {"games": []})
    write_json(tmp_path / "scores.json", {"layers": []})
    for words, said in (
        ((few, few), "share 2 ways of choosing layers; expected at least 3"),
        ((few, tmp_path / "scores.json"), "a league is compared with one other league"),
        ((few, few, few), "a league is compared with one other league"),
        ((few, tmp_path / "empty.json"), "expected the figures of `keylayers league`"),
        ((few, damaged), "damaged.json"),
        ((few, tmp_path / "nowhere.json"), "nowhere.json: no such file or folder"),
    ):
        shown = cli("compare", *words)
        assert shown.code == 2 and said in shown.err and "Traceback" not in shown.err
