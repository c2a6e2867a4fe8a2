"""``launch --simulate``: the CPU twin of a cluster run. ``shrink`` is pure; phases start the commands a user would."""
