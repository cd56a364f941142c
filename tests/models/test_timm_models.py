"""The models that timm.create_model knows once `ppma.models.timm_models` is imported: the encoder's weights, timm's methods."""

import pytest
import restatement
import torch

from ppma.config.errors import InputError
from ppma.config.model import preset
from ppma.models import timm_models as timm_models  # registers them
from ppma.models.torchvision_shim import timm
from ppma.models.vit import Encoder


def test_timm_creates_it_and_its_weights_are_an_encoders():
    model = timm.create_model("ppma_vit_tiny_patch16_224", num_classes=7, img_size=32, frames=4).double().eval()
    clip = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    logits = model(restatement.normalized_clip(clip, torch.float64))
    assert logits.shape == (2, 7)
    encoder = Encoder(preset("tiny", size=32, frames=4), init="xavier", seed=9).double()
    left = encoder.load_state_dict(model.state_dict(), strict=False)
    assert not left.missing_keys and set(left.unexpected_keys) == {
        f"{n}.{p}" for n in ("fc_norm", "head") for p in ("weight", "bias")
    }
    tokens = encoder.encode(encoder.embed(encoder.patches(clip)))
    torch.testing.assert_close(model.forward_head(tokens), logits, rtol=0, atol=1e-10)
    assert timm.data.resolve_model_data_config(model)["mean"] == restatement.MEAN


def test_timm_methods():
    model = timm.create_model("ppma_vit_tiny_patch16_224", img_size=32, frames=4, drop_path_rate=0.5)
    video = torch.randn(2, 3, 4, 32, 32)
    assert model(video).shape == (2, 192) and model.forward_features(video).shape == (2, 8, 192)
    model.reset_classifier(3)
    assert model(video).shape == (2, 3) and model.get_classifier().out_features == 3
    assert len(timm.list_models("ppma_vit_*")) == 5
    with pytest.raises(InputError, match=r"takes num_classes.*given global_pool"):
        timm.create_model("ppma_vit_tiny_patch16_224", global_pool="token")
    with pytest.raises(InputError, match="no released weights"):
        timm.create_model("ppma_vit_tiny_patch16_224", pretrained=True)
