"""For all unit tests: no clock of Hypothesis's own, and nothing collected over and over.

How long an example takes is the machine's affair.
"""

import gc

from hypothesis import settings

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")


def pytest_collection_finish() -> None:
    """Keep what the collection made out of the garbage collector: it took a tenth of the tests' time."""
    gc.collect()
    gc.freeze()
