"""One HTML page about runs: what they did, against what was predicted."""
