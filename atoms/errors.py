"""The one exception a user is meant to see, and how text from elsewhere is shown to them."""

import unicodedata


class AtomsError(Exception):
    """Something the user can mend: one line that names the setting, its value and the fix.

    Raised wherever input, configuration or the machine is at fault. The command line prints the message
    alone and exits with status 1; from Python it is an ordinary exception. Programming errors stay what
    they are and keep their traceback.
    """


def printable(text: str) -> str:
    """One line that moves no cursor, colours nothing and reorders nothing, whatever a name or a file put into it."""
    line = " ".join(text.split())
    return "".join(c if unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in line)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its name where it says nothing.

    Args:
        error: Somebody else's, to be quoted in an `AtomsError`.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
