"""A method without a network, for the tests of retrieval/."""

import pytest
from fakes import FakeMethod


@pytest.fixture
def method():
    return FakeMethod().eval()
