"""Which process holds which part of the network, and how the processes communicate."""
