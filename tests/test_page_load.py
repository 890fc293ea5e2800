"""A few seconds of many visitors of the web page at once; `make load` keeps them coming for half an hour."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import pytest
import tensorflow as tf
from runners import page_runner

pytest.importorskip("gradio", reason="needs the extra `app`")

from tcp_tf import app
from tcp_tf.app_handlers import Answer, Handlers
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import Config
from tcp_tf.editor import Editor

pytestmark = [
    pytest.mark.slow(25),
    pytest.mark.one_stack,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*"),
]


def test_visitors_good_and_bad_get_answers(tiny_config: Config) -> None:
    tf.keras.utils.set_random_seed(0)
    page = app.serve(Editor(AutoEncoder.from_config(tiny_config), tiny_config), port=0)
    try:
        outcomes, problems, samples = page_runner.run(os.getpid(), page.url, minutes=0.2, visitors=4)
    finally:
        page.close()
    assert not problems and len(samples) > 1
    assert outcomes["paint right"] and outcomes["nonsense wrong"] + outcomes["nonsense refused"]
    assert outcomes["elsewhere refused"] or sum(outcomes.values()) < 200


def test_an_error_of_the_page_itself_is_noticed(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Answer:
        raise RuntimeError("a mistake in the program")

    monkeypatch.setattr(Handlers, "_render", broken)
    page = app.serve(Editor(AutoEncoder.from_config(tiny_config), tiny_config), port=0)
    try:
        address = urlsplit(page.url).netloc
        visitor = page_runner.Visitor(address, page_runner.events_of(address), seed=0)
        visitor.send("arrive")
        with pytest.raises(page_runner.Problem, match="paint"):
            visitor.send("paint", visitor.drawn())
    finally:
        page.close()
