"""The one error that a bad model configuration raises; ``deploy.cli`` prints it as a single line."""


class ConfigError(ValueError):
    """A model configuration that cannot be built; the message names the field and the fix."""
