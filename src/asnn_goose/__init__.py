"""ASNN-Goose: pretrained transformer language models distilled into spiking recurrent students.

Importing this package makes transformers' Auto classes know the student, so that
`AutoModelForCausalLM.from_pretrained(run_folder / "model")` loads it. The registration waits until
transformers itself is imported: the command line's help and the configuration need neither it nor torch.
"""

from importlib.metadata import version
from types import ModuleType
from typing import Any

import wrapt

__version__ = version("asnn-goose")
__all__ = ["GooseConfig", "GooseForCausalLM", "RecurrentCache", "__version__"]

_LAZY = {
    "GooseConfig": "asnn_goose.models.configuration",
    "GooseForCausalLM": "asnn_goose.models.student",
    "RecurrentCache": "asnn_goose.models.cache",
}


def __getattr__(name: str) -> Any:
    """Load the public classes when they are first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


@wrapt.when_imported("transformers.models.auto.configuration_auto")
def _register_configuration(module: ModuleType) -> None:
    from asnn_goose.models.configuration import GooseConfig

    module.AutoConfig.register("asnn_goose", GooseConfig, exist_ok=True)


@wrapt.when_imported("transformers.models.auto.modeling_auto")
def _register_model(module: ModuleType) -> None:
    from asnn_goose.models.configuration import GooseConfig
    from asnn_goose.models.student import GooseForCausalLM, GooseModel

    module.AutoModel.register(GooseConfig, GooseModel, exist_ok=True)
    module.AutoModelForCausalLM.register(GooseConfig, GooseForCausalLM, exist_ok=True)
