"""The conformance suite for quantizers: tiny models, builds on them, and the checks every quantizer must pass.

`harness check-plugin NAME` runs it. It is a client of everything and nothing but the command line knows it.
"""
