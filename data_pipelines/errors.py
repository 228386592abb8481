"""The one error that bad input data raises; ``deploy.cli`` prints it as a single line."""


class DataError(ValueError):
    """Input data (source files, shards, index) that cannot be used; names the file and the fix."""
