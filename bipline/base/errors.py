"""The three ways a command can end badly, each with its exit code.

Every message is one line that names what was wrong, the value, and what to do. What an address
holds of a user and a password is taken out of it here, so that no place has to think of it.
"""

from bipline.base.addresses import without_secrets


class BiplineError(Exception):
    """Base of the errors a user sees as one line; ``exit_code`` is the process's answer."""

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(without_secrets(str(message)))


class Refused(BiplineError):
    """A check failed or a gate refused: the input was fine, the outcome was not (exit 1)."""

    exit_code = 1


class InvalidInput(BiplineError):
    """What the user gave cannot be used: a path, a value, a checkpoint (exit 2)."""

    exit_code = 2


class EnvironmentFailure(BiplineError):
    """The surroundings failed: disk full, server down; a retry may help (exit 3)."""

    exit_code = 3


# The errors by the exit code that another process, or a record, tells.
BY_EXIT_CODE = {kind.exit_code: kind for kind in (Refused, InvalidInput, EnvironmentFailure)}
