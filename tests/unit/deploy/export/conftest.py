"""transformers must find torchaudio importable before any of its processors is imported."""

import deploy.export.registration  # noqa: F401
