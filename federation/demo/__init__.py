"""Sites to try the whole system on: simulated subjects, and the decathlon's hippocampus."""
