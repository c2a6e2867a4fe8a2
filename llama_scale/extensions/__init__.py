"""What can be added by name: adapters, tasks, gates and launchers, found by entry points of installed distributions."""
