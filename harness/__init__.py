"""Compare distillation, quantization and every pipeline of the two: compress, measure, report.

Suites say what, the harness does, results remember, reports show. The public names are the ones a plug-in author or a
notebook needs; everything else is reached through its module.
"""

__version__ = "0.1.0"
