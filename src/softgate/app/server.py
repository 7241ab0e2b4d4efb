"""Serves the page until it is stopped."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig

from softgate.app import config as configs
from softgate.app.config import ServerConfig
from softgate.app.library import Library
from softgate.app.offer import Offer, loopback
from softgate.errors import SoftgateError, require
from softgate.evaluation import networks

QUEUE = 256
"""Events that wait at most; of each visit those that it no longer wants leave at once."""

PORT = 7860
PORTS = 100
"""Where a free port is looked for, and among how many."""


def serve(cfg: DictConfig, train: Sequence[str] | None = None) -> None:
    """Runs the app of a config until a signal ends it.

    Args:
        cfg: The config of `conf/app.yaml`, composed.
        train: The words that start `train.py`, where there may be no run and the page then offers one; None is a
            sentence where there is none.

    Raises:
        SoftgateError: For a mistake in the config, runs that are not there, a port that is taken, or no Gradio.
    """
    options = configs.options(cfg)
    require(find_spec("gradio") is not None, "softgate app needs Gradio: pip install 'softgate[app]'.")
    port = free(options.app)
    size = None if options.model is None else networks.image_size(options.model, options.data)
    offer = None if train is None else Offer(train)
    library = Library(options, size, empty=offer is not None)
    for line in library.labels or ["no run yet; the page offers to train one"]:
        print(f"  {line}")
    url = launch(library, port, offer)
    print(f"ready: {url}", flush=True)
    try:
        threading.Event().wait()
    finally:
        if offer is not None:
            offer.stop()


def free(options: ServerConfig) -> int:
    """The port to listen on.

    Raises:
        SoftgateError: If it is taken, none is free, or the interface is none of this machine's.
    """
    wanted = [options.port] if options.port is not None else list(range(PORT, PORT + PORTS))
    why = ""
    for port in wanted:
        try:
            found = socket.getaddrinfo(options.host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(found[0], found[1]) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(found[4])
            return port
        except socket.gaierror:
            raise SoftgateError(f"app.host={options.host}: this machine knows no such interface.") from None
        except OSError as error:
            why = str(error.strerror).lower()
    if options.port is None:
        raise SoftgateError(f"app.port=null: no port from {PORT} to {PORT + PORTS - 1} is free ({why}).")
    hint = "give another, or app.port=null for a free one"
    raise SoftgateError(f"app.port={options.port}: it cannot be listened on at {options.host} ({why}); {hint}.")


def launch(library: Library, port: int, offer: Offer | None = None) -> str:
    """Starts the page in threads of this process; returns its address.

    Raises:
        SoftgateError: If the port was taken meanwhile.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks itself whether it is there
    import gradio as gr
    from starlette.middleware import Middleware

    from softgate.app.limits import Limits
    from softgate.app.markup import CSS
    from softgate.app.page import Page

    options = library.options
    system = ("system-ui", "sans-serif")
    theme = gr.themes.Base(font=system, font_mono=("ui-monospace", "monospace"))
    page: Any = Page(library, offer, loopback(options.host, options.share)).build().queue(max_size=QUEUE)
    try:
        _, local, shared = page.launch(
            server_name=options.host,
            server_port=port,
            share=options.share,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            allowed_paths=[],
            app_kwargs={"middleware": [Middleware(Limits, most=options.upload_mb * 1e6)]},
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            footer_links=[],
            theme=theme,
            css=CSS,
        )
    except OSError:
        raise SoftgateError(
            f"app.port={port}: something began to listen there at {options.host}; give another."
        ) from None
    return str(shared or local)
