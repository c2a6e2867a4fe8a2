"""The built-in tasks: light descriptors, registered by entry points like anyone's; *_module.py: implementations."""
