"""One world on disk for all tests of the doctor."""

import pytest

from tests.recipes.small import World, make


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return make(tmp_path_factory.mktemp("world"))
