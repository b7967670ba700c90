from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TestServer
from tests.integration.sample import Sample, build


@pytest.fixture(scope="session")
def sample(server: TestServer) -> Iterator[Sample]:
    """A captured database and its archive, shared: tests leave both as they are."""
    name = server.create_database()
    folder = Path(tempfile.mkdtemp(prefix="waly-sample-"))
    try:
        yield build(server.dsn(name), folder / "archive")
    finally:
        server.drop_database(name)
        shutil.rmtree(folder, ignore_errors=True)
