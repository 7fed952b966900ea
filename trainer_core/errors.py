"""The errors a user can act on."""


class TrainerError(Exception):
    """A mistake in the input: what is wrong, the value, and what to do about it.

    The first line is shown alone in dialogs, so it must say the whole thing.
    """


class CacheDamagedError(TrainerError):
    """Files of a cache are missing or damaged; running the cache's step again writes them anew."""

    def __init__(self, message: str, *, cache: str) -> None:
        """
        Args:
            message: See `TrainerError`.
            cache: Which cache: the name of its folder (data/index.py).
        """
        super().__init__(message)
        self.cache = cache


class StopTraining(Exception):
    """Raised inside a step when the user asked to stop; what was done so far is on disk."""


class OtherProcessFailed(TrainerError):
    """Another of the processes that train together failed, and has said why."""
