"""The one exception type that means: the user's input is wrong.

The command line prints its text as one line and exits with 2; every other exception is a defect of ours and keeps its traceback.
"""


class InputError(ValueError):
    """Raised with one line that names the offending value, the allowed ones, and what to do."""
