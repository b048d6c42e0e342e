"""Everything that knows Flower. No other package of the project imports ``flwr``.

The switches that keep Flower from calling home are set in ``federation/__init__.py``, which Python
runs before this.
"""
