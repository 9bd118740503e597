"""What data say about units and weights: the loops that learn."""
