"""Whether the Hugging Face hub answers, asked once and within seconds, before a library retries for minutes."""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from huggingface_hub import constants
from huggingface_hub.utils import get_session

logger = logging.getLogger(__name__)

LIBRARIES = (
    "datasets",
    "filelock",
    "fsspec",
    "httpcore",
    "httpx",
    "httpx2",
    "huggingface_hub",
    "transformers",
    "urllib3",
)
"""Names of the loggers that speak while something is fetched from the hub."""


def hub_answers(timeout_seconds: float = 5.0) -> bool:
    """Whether the hub answers one request within `timeout_seconds`; False when `HF_HUB_OFFLINE` is set.

    The hub is the one `huggingface_hub` is configured for (`HF_ENDPOINT`), reached through its own client,
    so with its proxies and certificates. A server error counts as no answer. Never raises.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []
    # A name server that stays silent blocks beyond every timeout of the client, so the request has a
    # thread of its own, which is left behind if it does not come back.
    request = threading.Thread(target=_ask_hub, args=(answers, timeout_seconds), daemon=True)
    with quiet_hub_logs():
        request.start()
        request.join(timeout_seconds)
    return bool(answers) and answers[0]


def _ask_hub(answers: list[bool], timeout_seconds: float) -> None:
    try:
        response = get_session().head(constants.ENDPOINT, timeout=timeout_seconds)
    # The client library, and with it every class of its errors, depends on the version of
    # huggingface_hub; whatever it raises, the hub did not answer.
    except Exception as error:
        logger.debug("%s did not answer: %s", constants.ENDPOINT, error)
        answers.append(False)
    else:
        answers.append(response.status_code < 500)


@contextmanager
def quiet_hub_logs() -> Iterator[None]:
    """Silence the loggers of the hub's libraries, errors included, for the length of a block."""
    with ExitStack() as restore:
        for name in LIBRARIES:
            library = logging.getLogger(name)
            restore.callback(library.setLevel, library.level)
            library.setLevel(logging.CRITICAL + 1)
        yield
