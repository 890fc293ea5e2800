"""A conformance server: an *emulator* of TensorFlow Serving for tests, on real sockets.

What is real: the protocol buffers and gRPC stubs of `tensorflow-serving-api`, HTTP over a socket, and TensorFlow's
runtime under a Session that the SavedModel is loaded into by its graph and its restore op, as the server does it. What
is imitated from the server's documentation and source: its rules for requests, its error codes and the sentences that
clients look at, its batching. What is left out: Classify, Regress and MultiInference, the prometheus page, TLS.
"""
