"""The one exception a user is meant to see."""


class AtomsError(Exception):
    """Something the user can mend: one line that names the setting, its value and the fix.

    Raised wherever input, configuration or the machine is at fault. The command line prints the message
    alone and exits with status 1; from Python it is an ordinary exception. Programming errors stay what
    they are and keep their traceback.
    """
