import pytest

from queries import client_of
from stack import Stack


@pytest.fixture
def start(tmp_path):
    """Starts stacks, and stops them after the test, also if it fails."""
    started = []

    def start(**options):
        directory = tmp_path / str(len(started))
        directory.mkdir()
        started.append(Stack(directory, **options))
        return started[-1]

    yield start
    for stack in started:
        stack.close()


@pytest.fixture
def stack(start):
    return start()


@pytest.fixture
def client(stack):
    return client_of(stack.url)
