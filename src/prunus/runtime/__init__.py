"""How a model is run: calling, steps of training, modes, precision, processes, progress. No idea of pruning."""
