"""A run's folder, for the tests of what is written there."""

import pytest

from utils.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    """Of a run that has just started."""
    folder = RunFolder(tmp_path / "run", writes=True)
    folder.open(resume=False)
    yield folder
    folder.close()
