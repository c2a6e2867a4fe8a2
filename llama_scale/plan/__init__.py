"""What follows from a spec: who computes what, how much memory it takes, in which order; pure functions."""
