"""Choose a layout by measuring the best predicted ones on the machine itself."""
