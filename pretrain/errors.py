"""The one error that a run which cannot start or go on raises; ``deploy.cli`` prints it as a single line."""


class RunError(ValueError):
    """A run (config, checkpoint, environment) that cannot be used; names the field or file and the fix."""
