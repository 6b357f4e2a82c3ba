"""Rows of token ids for pretraining: a fixed function of the settings, the step and the process."""

import hashlib
from itertools import islice
from typing import TypeVar

import torch

from keylayers.world import corpus
from keylayers.world.hashing import unit
from keylayers.world.settings import LONG_ROWS, LONG_SHARES, STAGES, Settings

Value = TypeVar("Value")

Mixtures = dict[tuple[int, int], dict[str, float]]
"""(First step of a stage, row length) -> kind of document -> the weight with which it is drawn."""


def row_length(settings: Settings, step: int) -> int:
    """The length of a step's rows: 128, or after a while sometimes 512 or 2,048."""
    draw = unit("row length", settings.seed, step)
    for length, share in _latest(LONG_ROWS, step).items():
        if draw < share:
            return length
        draw -= share
    return settings.short_row


def _latest(table: dict[int, Value], step: int) -> Value:
    """The value of the last key that is not beyond the step."""
    return table[max(first for first in table if first <= step)]


def mean_lengths(bpe) -> dict[str, float]:
    """Kind of document -> the mean tokens of 200 of them."""
    lengths = {}
    for kind in corpus.DOCUMENTS:
        texts = [text for _, text in islice(corpus.documents({kind: 1.0}, "lengths"), 200)]
        lengths[kind] = sum(map(len, bpe(texts)["input_ids"])) / len(texts)
    return lengths


def mixtures(settings: Settings, bpe) -> Mixtures:
    """The weights of documents that give the stages' shares of tokens."""
    lengths = mean_lengths(bpe)
    table = {}
    for stage, shares in STAGES.items():
        table[stage, settings.short_row] = shares
        for length, (kind, share) in LONG_SHARES.items():
            rest = {other: part * (1 - share) for other, part in shares.items()}
            table[stage, length] = {kind: share, **rest}
    return {key: {kind: share / lengths[kind] for kind, share in shares.items()} for key, shares in table.items()}


def pack_rows(
    settings: Settings, bpe, mixture: Mixtures, step: int, part: int, parts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (rows, length) of one process's part of a step, padded on the right, and which are to be learnt.

    Documents are laid into rows whole, the longest first, each into the fullest row that still holds it; one for which
    no row has room is left out, as is one longer than a row.
    """
    length = row_length(settings, step)
    count = settings.tokens // parts // length
    stage = max(first for first in STAGES if first <= step)
    stream = corpus.documents(mixture[stage, length], settings.seed, step, part)
    waiting: list[list[int]] = []
    while sum(map(len, waiting)) < count * length:
        texts = [text for _, text in islice(stream, 8 if length < 2048 else 2)]
        waiting += [ids for ids in bpe(texts)["input_ids"] if len(ids) <= length]
    filled: list[list[int]] = [[] for _ in range(count)]
    learnt: list[list[bool]] = [[] for _ in range(count)]
    mark = bpe("Answer:", add_special_tokens=False)["input_ids"]
    for ids in sorted(waiting, key=len, reverse=True):
        with_room = [row for row in range(count) if len(filled[row]) + len(ids) <= length]
        if with_room:
            fullest = max(with_room, key=lambda row: len(filled[row]))
            filled[fullest] += ids
            learnt[fullest] += supervised(ids, mark, bpe.eos_token_id)
    padded = torch.full((count, length), bpe.pad_token_id)
    kept = torch.zeros((count, length), dtype=torch.bool)
    for i, row in enumerate(filled):
        padded[i, : len(row)] = torch.tensor(row)
        kept[i, : len(row)] = torch.tensor(learnt[i])
    return padded, kept


def supervised(ids: list[int], mark: list[int], end: int) -> list[bool]:
    """Which tokens of a document are learnt: of questions with answers only the answers, of other text all.

    Questions are mostly random names and numbers: learning to guess them would drown what the answers teach.
    """
    starts = {i + len(mark) for i in range(len(ids)) if ids[i : i + len(mark)] == mark}
    if not starts:
        return [True] * len(ids)
    flags, inside = [], False
    for i, token in enumerate(ids):
        inside = inside or i in starts
        flags.append(inside)
        inside = inside and token != end
    return flags


def digest(settings: Settings, steps: int = 100) -> str:
    """The sha256 of documents of the corpus, 20 from each of so many seeds and three of each longer kind.

    It changes with any change to what the base model reads, and costs a second.
    """
    read = hashlib.sha256()
    for step in range(steps):
        shares = list(STAGES.values())[step % len(STAGES)]
        for kind, text in islice(corpus.documents(shares, settings.seed, step, 0), 20):
            read.update(f"{kind}\n{text}\n".encode())
    for kind, _ in LONG_SHARES.values():
        for _, text in islice(corpus.documents({kind: 1.0}, settings.seed), 3):
            read.update(text.encode())
    return read.hexdigest()
