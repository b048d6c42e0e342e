"""Operating conditions of models that a person can act on."""


class ModelError(Exception):
    """A model cannot be built, trained under privacy, or read; the message says the way out."""
