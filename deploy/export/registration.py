"""Importing this module teaches transformers' Auto classes to load our exports without remote code."""

from transformers import AutoConfig, AutoModel

from deploy.export.modeling_data2vec2 import Data2Vec2Config, Data2Vec2Model

AutoConfig.register(Data2Vec2Config.model_type, Data2Vec2Config)
AutoModel.register(Data2Vec2Config, Data2Vec2Model)
