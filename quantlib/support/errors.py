"""Exceptions: for input that cannot be used, and for optional parts that are not available."""


class InputError(Exception):
    """What the user gave cannot be used.

    The message is a single line that names the file, the line number, the value, and what would be right.
    The command line prints it to stderr and exits with code 2; everything else that is raised is a bug
    and gets a traceback.
    """


class Unavailable(Exception):
    """Something optional is not available here; the message says what and why, in one line.

    The caller goes on without it, and says so in the output.
    """
