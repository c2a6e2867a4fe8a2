"""The built-in adapters, found by entry points like anyone's: a light descriptor and a torch module each."""
