"""The options of `softgate app`: one sentence for what is wrong."""

import socket

import pytest

from app_options import options
from softgate import SoftgateError
from softgate.app.server import free


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("app.port=0", "app.port=0: a whole number from 1 to 65535 is needed, or null"),
        ("app.port=many", "app.port=many"),
        ("app.share=1", "app.share=1: true or false is needed"),
        ("app.networks=0", "app.networks=0"),
        ("app.upload_mb=-1", "app.upload_mb=-1"),
        ("accelerator=tpu", "accelerator=tpu"),
        ("+app.prot=1", "app.prot: there is no such option; allowed under app: .* Did you mean app.port?"),
        ("model=resnet18", "data is not chosen"),
    ],
)
def test_a_bad_value_is_one_sentence(word, said):
    with pytest.raises(SoftgateError, match=said) as error:
        options(word)
    assert "\n" not in str(error.value)


def test_it_listens_on_this_machine_alone_and_shares_nothing_unless_told():
    given = options("runs=x").app
    assert (given.host, given.share, given.port) == ("127.0.0.1", False, 7860)


def test_a_port_that_is_taken_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SoftgateError, match=f"app.port={port}: it cannot be listened on at 127.0.0.1"):
            free(options("runs=x", f"app.port={port}").app)
    with pytest.raises(SoftgateError, match=r"app.host=no\.such\.host\.invalid"):
        free(options("runs=x", "app.host=no.such.host.invalid").app)
