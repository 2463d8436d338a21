"""Errors that people meet. Each message says what was found, what is allowed, and what to do next."""


class GistSelectError(Exception):
    """Any failure that the user can act on; the command line prints it without a traceback."""


class ConfigError(GistSelectError):
    """An option, or a combination of options, that cannot work."""


class DataError(GistSelectError):
    """A file or a row that cannot be read; the message names the file and the row."""


class ModelError(GistSelectError):
    """A model, tokenizer or adapter that cannot be used for what was asked."""


class ArtifactMismatchError(GistSelectError):
    """Stored results that do not belong together, or that are damaged."""


class DamagedShardError(ArtifactMismatchError):
    """A shard of an object store that was damaged and has been taken away, so that it counts as missing from now on."""


class UnreachableError(GistSelectError):
    """A service on the network that failed to answer as it should; another attempt may find it well."""


class MissingDependencyError(GistSelectError):
    """An optional package that the asked-for feature needs."""
