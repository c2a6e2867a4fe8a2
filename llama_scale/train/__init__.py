"""The worker side: model, engines, loop and data. Everything here may import torch; the command line never does."""
