"""Pretraining reads what its settings say, and an interrupted run ends as an uninterrupted one does."""

import pytest
import torch

from keylayers.world import corpus, tokenizer
from keylayers.world.rows import mixtures, pack_rows, row_length, supervised
from keylayers.world.settings import LONG_ROWS, LONG_SHARES, STAGES, TOKENIZER_WEIGHTS, Settings
from tools import pretrain
from tools.pretrain_checkpoint import STATE, load_state

SMALL = Settings(steps=6, tokens=512, warmup=2, d_model=16, d_hidden=16, blocks=1, heads=2, kv_heads=1, decay=2)


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.train(TOKENIZER_WEIGHTS, count=600)


def test_shares_sum_to_one_and_the_languages_stand_at_90_5_5():
    for shares in STAGES.values():
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["Velish"] == shares["Oskan"] == 0.05
    read = {kind for shares in STAGES.values() for kind in shares} | {kind for kind, _ in LONG_SHARES.values()}
    assert read == set(corpus.DOCUMENTS)


def test_rows_are_full_whole_documents_and_the_same_every_time(bpe):
    settings = Settings()
    mixture = mixtures(settings, bpe)
    first, learnt = pack_rows(settings, bpe, mixture, 3, 1, 2)
    assert torch.equal(first, pack_rows(settings, bpe, mixture, 3, 1, 2)[0])
    assert not torch.equal(first, pack_rows(settings, bpe, mixture, 3, 0, 2)[0])
    assert first.shape == (settings.tokens // 2 // settings.short_row, settings.short_row)
    assert (first[:, 0] == bpe.bos_token_id).all()
    assert (first != bpe.pad_token_id).float().mean() > 0.9
    assert not learnt[first == bpe.pad_token_id].any()


def test_answers_alone_are_learnt_where_there_are_questions(bpe):
    mark = bpe("Answer:", add_special_tokens=False)["input_ids"]
    text = "Question: Start 7, add 5.\nAnswer: Start 7. Answer 12.<eos>\nQuestion: Who?\nAnswer: Me.<eos>\n"
    ids = bpe(text)["input_ids"]
    kept = [i for i, flag in zip(ids, supervised(ids, mark, bpe.eos_token_id), strict=True) if flag]
    assert bpe.decode(kept) == " Start 7. Answer 12.<eos> Me.<eos>"
    plain = bpe("A plain text.<eos>")["input_ids"]
    assert all(supervised(plain, mark, bpe.eos_token_id))


def test_longer_rows_come_only_late_and_in_the_share_asked_for():
    settings = Settings()
    firsts = sorted(LONG_ROWS)
    for first, end in zip(firsts, [*firsts[1:], first_beyond := firsts[-1] + 20_000], strict=True):
        lengths = [row_length(settings, step) for step in range(first, end)]
        asked = LONG_ROWS[first]
        assert set(lengths) == {settings.short_row, *asked}
        if end == first_beyond:
            for length, share in asked.items():
                assert lengths.count(length) / len(lengths) == pytest.approx(share, abs=0.01)


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(bpe, tmp_path):
    threads = torch.get_num_threads()
    ends = []
    for name, stops in (("whole", [None]), ("parts", [3, None])):
        folder = tmp_path / name
        tokenizer.save(bpe, folder)
        for stop in stops:
            pretrain.train(0, 1, folder, SMALL, stop)
        model = pretrain.build(SMALL, bpe)
        step, log = load_state(folder, model, pretrain.optimisers(SMALL, model))
        assert step == SMALL.steps and (folder / STATE).exists() and not list(folder.glob(".state*"))
        ends.append((model.state_dict(), log["tokens"]))
    torch.set_num_threads(threads)
    (whole, read), (parts, read_again) = ends
    assert read == read_again
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_rates_warm_up_stay_and_fall_to_nothing():
    settings = Settings()
    factors = [pretrain.rate(settings, step) for step in range(settings.steps)]
    assert max(factors) == 1 and factors[0] < 0.05 and factors[-1] < 0.01
    assert factors.count(1.0) > 0.5 * settings.steps
