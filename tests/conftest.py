"""What every test shares: no network, one thread per worker, the same random numbers each time."""

import gc
import importlib
import os
import random
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",  # two workers share two cores; read when torch is first imported
)

import numpy as np
import pytest
from hypothesis import Phase, settings

if TYPE_CHECKING:
    from tests.small_world import World

# A background job inherits SIGINT ignored, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("keylayers", deadline=None, derandomize=True, max_examples=50)
settings.register_profile(  # make fuzz; inputs are small as they are
    "fuzz",
    deadline=None,
    max_examples=int(os.environ.get("EXAMPLES", 2000)),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
settings.load_profile("keylayers")


HEAVY = "datasets matplotlib.pyplot peft scipy.stats sklearn.datasets torch transformers.trainer trl"
_frozen = 0


def pytest_sessionstart(session: pytest.Session) -> None:
    """A worker of many imports at once what nearly all its tests will, before the first of them collects garbage."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        for name in HEAVY.split():
            importlib.import_module(name)
        _put_aside()


def _put_aside() -> None:
    global _frozen
    gc.collect()
    gc.freeze()
    _frozen = len(sys.modules)


@pytest.fixture(autouse=True, scope="module")
def imports_are_not_searched() -> None:
    """Every training asks for collections, which take longer than a tiny model's training where they look through the
    million objects that imports left; so those are put aside whenever many modules have been added."""
    if len(sys.modules) > _frozen + 200:
        _put_aside()


@pytest.fixture(autouse=True)
def same_random_numbers() -> Iterator[None]:
    """Seeds every generator that is loaded; torch is not imported for tests that do without it."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
        torch.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> "World":
    """A tiny language model and data for it on disk."""
    from tests.small_world import make

    return make(tmp_path_factory.mktemp("world"))
