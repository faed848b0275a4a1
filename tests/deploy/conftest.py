import pytest

from empty_root import EmptyRoot


@pytest.fixture
def root(tmp_path):
    """An empty root. Whatever runs in it is stopped after the test."""
    root = EmptyRoot(tmp_path)
    yield root
    root.close()
