"""Make ``python -m llama_scale`` the same as the ``llama-scale`` command."""

from llama_scale.cli.app import main

if __name__ == "__main__":
    main()
