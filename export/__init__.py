"""Serving a trained model: run directory -> SavedModel, and what stands around it.

    signatures      the served functions, their names, shapes and checks
    picture_bytes   encoded pictures inside the graph: bounded decoding that cannot take a batch down
    savedmodel      writes `DIR/<version>/` whole or not at all
    audit           reads a SavedModel without running it and says what a server would refuse
    client          edits pictures by way of a server, over gRPC or REST
    pipeline        edits or encodes pictures by the million, on Apache Beam

`python -m export --run-dir RUN --output DIR` is the command. Importing this package imports nothing.
"""
