import pytest

from demo import Demo
from empty_root import EmptyRoot


@pytest.fixture
def root(tmp_path):
    """An empty root file system. Processes that run in it are stopped after the test."""
    root = EmptyRoot(tmp_path)
    yield root
    root.close()


@pytest.fixture
def demo(tmp_path):
    """A demo on free ports, and its output."""
    demo = Demo(tmp_path)
    yield demo
    demo.close()
