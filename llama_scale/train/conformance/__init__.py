"""The conformance suite of `plugins check`: real models, engines and processes on the CPU, tiny numbers."""
