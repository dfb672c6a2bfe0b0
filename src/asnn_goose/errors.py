"""The errors a user can cause, each one line that names the value, what was expected, and the way out."""


class GooseError(Exception):
    """An error in what the user gave; the command line prints its one line and exits with code 2."""


class ConfigError(GooseError):
    """A recipe or an override that does not describe a run."""


class DataError(GooseError):
    """A text source that cannot be read or holds no text."""


class TeacherError(GooseError):
    """A teacher that cannot be loaded or cannot be distilled from."""


class HubUnreachableError(GooseError):
    """A model or data set hub that did not answer."""


class VocabularyMismatchError(GooseError):
    """A teacher and a student that do not share one vocabulary."""


class ModelError(GooseError):
    """A run folder or model directory that cannot be loaded or used as asked."""


class RunFolderError(GooseError):
    """A run folder that cannot be created, written or resumed."""


class CheckpointError(GooseError):
    """A checkpoint that is missing, damaged or belongs to another run."""


class TrainingDivergedError(GooseError):
    """Training that kept producing non-finite values after every roll-back."""


class MachineError(GooseError):
    """Something this machine lacks: disk space, a package, a device."""
