"""What a board can check by itself, with neither the sites' keys nor their images."""
