"""Which process holds which part of the network, and what the processes tell each other."""
