"""The one family of errors that the command line prints as a single line."""


class HarnessError(Exception):
    """Something a person can act on.

    The message says what was tried, on which node, what was seen and what to do next, in one line.
    ``harness`` prints it and exits with 1; anything that is not a HarnessError is a defect.
    """
