"""Property tests without Hypothesis's own clock: how long an example takes is the machine's affair."""

from hypothesis import settings

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")
