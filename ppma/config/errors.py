"""Two exceptions: InputError when the user's input is wrong, BadClip when one file of many is.

The command line prints the text of an InputError as one line and exits with 2. A BadClip is counted, named and replaced by whoever reads
clips. Every other exception is a defect of ours and keeps its traceback.
"""


class InputError(ValueError):
    """Raised with one line that names the offending value, the allowed ones, and what to do."""


class BadClip(Exception):
    """A file that cannot give the frames asked of it; the text says why."""
