"""Operating conditions of data that a person can act on."""


class DataError(Exception):
    """A data set cannot be used; the message says what, where, and the way out.

    Args:
        code: The key of ``reasons.REASONS`` where one scan is the cause, else empty.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class CacheError(DataError):
    """The machine, not the data, is in the way: no space, no memory, no permission."""
