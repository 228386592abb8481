"""Importing this module teaches transformers' Auto classes to load our exports without remote code."""

from importlib.util import find_spec

from data_pipelines.transforms.resampling import import_torchaudio


def _register() -> None:
    if find_spec("torchaudio") is not None:
        import_torchaudio()  # transformers imports it where it is installed, and fails where its library does
    import transformers

    from deploy.export.data2vec2.configuration import Data2Vec2Config
    from deploy.export.data2vec2.modeling import MODEL_CLASSES

    transformers.AutoConfig.register(Data2Vec2Config.model_type, Data2Vec2Config)
    for auto, kind in MODEL_CLASSES.items():
        getattr(transformers, auto).register(Data2Vec2Config, kind)


_register()
