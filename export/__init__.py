"""Serving a trained model: run directory -> SavedModel, and what stands around it.

    signatures      the served functions, their names, shapes and checks
    picture_bytes   encoded pictures inside the graph: bounded decoding that cannot take a batch down
    savedmodel      writes `DIR/<version>/` whole or not at all
    audit           reads a SavedModel without running it and says what a server would refuse

`python -m export --run-dir RUN --output DIR` is the command. Importing this package imports nothing.
"""
