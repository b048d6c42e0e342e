"""`make bench-data`: the data layer beside raw limits and peers, all in one run."""
