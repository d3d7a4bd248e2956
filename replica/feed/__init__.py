"""From shards to batches (paper 4.1): order, crops, reflections, color noise."""
