"""The simulated twin of a network, and the embedded default made of it."""
