"""Subject-level differential privacy: the plan, its randomness, sampling and the optimiser."""
