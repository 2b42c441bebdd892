"""What can go wrong, in words for the person who can mend it.

    EmrrgError              anything a user can act on; its text is a full sentence, never a traceback
    ├── ConfigError         a configuration value or key that makes no sense
    ├── FilmError           a file that cannot be read, or is not a single-frame chest radiograph
    ├── LanguageModelError  the frozen language model is missing, damaged or of the wrong kind
    ├── CheckpointError     a checkpoint that is missing, damaged or does not fit its configuration
    └── DataError           a row of a data set that cannot be used; names the study

Programming mistakes (a wrong shape, a hybrid decoder run without an image) raise the built-in ValueError or RuntimeError.
"""


class EmrrgError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(EmrrgError):
    """A configuration value or key that makes no sense."""


class FilmError(EmrrgError):
    """A file that cannot be read, or that is not a single-frame chest radiograph.

    rule: the one that refused it, a short word for programs that stays the same (docs/refusals.md); None where no rule of
    reading did. overridable: whether a reader who knows better may have it read all the same, with `anyway=[error.rule]`.
    """

    def __init__(self, message: str, *, rule: str | None = None, overridable: bool = False) -> None:
        super().__init__(message)
        self.rule, self.overridable = rule, overridable


class LanguageModelError(EmrrgError):
    """The frozen language model is missing, damaged or of the wrong kind."""


class CheckpointError(EmrrgError):
    """A checkpoint that is missing, damaged or does not fit its configuration."""


class DataError(EmrrgError):
    """A row of a data set that cannot be used; the message names the study."""
