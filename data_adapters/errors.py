"""Operating conditions of data that a person can act on."""


class DataError(Exception):
    """A data set cannot be used; the message says what, where, and the way out."""
