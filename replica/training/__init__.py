"""A run (paper 5): options, steps, optimizer, schedule, checkpoints, records."""
