"""What can be added by name: the registry that launchers (and later adapters, tasks and gates) are found through."""
