"""The network of a recipe (paper 3): its layers, their geometry, its first weights."""
