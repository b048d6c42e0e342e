"""What leaves the federation: a finished run in the formats that other tools open.

Each format is one module with one ``write``. Everything comes from the run's record, which is
public, and from the model; example images are made from the experiment's seed and shape.
"""
