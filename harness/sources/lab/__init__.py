"""Models trained here and the text they are trained on: a family that needs no hub, for which the whole truth is known.

Documents are drawn from seeded generators (`exercises`, `tools`) and from packaged English (`text`), so every machine
can make the same training text, and what is held out is known to be held out.
"""
