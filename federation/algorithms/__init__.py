"""Federated algorithms: client step and server step side by side, as pure functions."""
