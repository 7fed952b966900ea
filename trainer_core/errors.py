"""The error a user can act on."""


class TrainerError(Exception):
    """A mistake in the input: what is wrong, the value, and what to do about it.

    The first line is shown alone in dialogs, so it must say the whole thing.
    """


class StopTraining(Exception):
    """Raised inside a step when the user asked to stop; what was done so far is on disk."""
