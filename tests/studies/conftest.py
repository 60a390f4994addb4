"""Studies at their smallest: stored ones, and in the slower tests the same trained from the start."""

import pytest

from tests.studies import stored


@pytest.fixture(params=["stored", pytest.param("trained", marks=pytest.mark.slow)])
def smallest(request, tmp_path):
    """Make a study in `tmp_path`; what its stored folder lacks is trained."""

    def make(name):
        if request.param == "stored":
            stored.unpack(name, tmp_path)
        return stored.smallest(name, tmp_path)

    return make
