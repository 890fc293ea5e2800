"""Answers requests with a SavedModel in a Session, in a process that has TensorFlow and nothing of this project.

python -I session_runner.py DIRECTORY REQUESTS ANSWERS

Both files are pickles: a list of (signature, {input: array}) and a list of {output: array} or the message of an error.
"""

import pickle
import sys

for absent in ("tcp_tf", "export", "keras"):  # also where the project is installed beside TensorFlow
    sys.modules[absent] = None  # type: ignore[assignment]

import tensorflow as tf  # noqa: E402


def main(directory: str, requests_file: str, answers_file: str) -> None:
    with open(requests_file, "rb") as file:
        requests = pickle.load(file)
    answers = []
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], directory).signature_def
        for name, inputs in requests:
            signature = signatures[name]
            outputs = {alias: tensor.name for alias, tensor in signature.outputs.items()}
            feeds = {signature.inputs[alias].name: value for alias, value in inputs.items()}
            try:
                answers.append(session.run(outputs, feeds))
            except (tf.errors.InvalidArgumentError, ValueError) as error:  # wrong ranks Python notices by itself
                answers.append(str(error))
    with open(answers_file, "wb") as file:
        pickle.dump(answers, file)


main(*sys.argv[1:])
