"""VideoMAE of transformers, restated from its documented arithmetic: what `from_pretrained(folder)` computes.

    config.json, model.safetensors  ->  hidden_states, logits, reconstruction;  videos_BTCHW normalized float

`spelling` is the transformers that reads the biases of the attention: 4 has q_bias and v_bias, 5 query.bias, key.bias and
value.bias. Each ignores the other's.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

DEFAULT_EPS = 1e-5
"""Of torch's LayerNorm, which fc_norm and the decoder's last norm have in transformers."""


def table(positions: int, width: int) -> Tensor:
    return torch.tensor(
        [
            [(math.cos if i % 2 else math.sin)(position / math.pow(10000, 2 * (i // 2) / width)) for i in range(width)]
            for position in range(positions)
        ]
    )


@dataclass
class VideoMAE:
    folder: Path
    spelling: int = 5

    @cached_property
    def config(self) -> dict:
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "model.safetensors")

    def linear(self, x, name, bias=True):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"] if bias else None)

    def norm(self, x, name, eps):
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    def layer(self, x, name, heads):
        """One block: attention, then the MLP, each after its norm and added to its input."""
        eps, B, N, D = self.config["layer_norm_eps"], *x.shape
        y, own = self.norm(x, f"{name}.layernorm_before", eps), f"{name}.attention.attention"
        biases = {4: ("q_bias", "", "v_bias"), 5: ("query.bias", "key.bias", "value.bias")}[self.spelling]
        q, k, v = (
            F.linear(y, self.weights[f"{own}.{part}.weight"], self.weights[f"{own}.{bias}"] if bias else None)
            .view(B, N, heads, D // heads)
            .transpose(1, 2)
            for part, bias in zip(("query", "key", "value"), biases)
        )
        mixed = ((q @ k.transpose(2, 3)) * (D // heads) ** -0.5).softmax(dim=3) @ v
        x = x + self.linear(mixed.transpose(1, 2).reshape(B, N, D), f"{name}.attention.output.dense")
        hidden = F.gelu(self.linear(self.norm(x, f"{name}.layernorm_after", eps), f"{name}.intermediate.dense"))
        return x + self.linear(hidden, f"{name}.output.dense")

    def hidden_states(self, videos_BTCHW, masked_BN=None):
        """VideoMAEModel: last_hidden_state of all tokens, or of those that are not masked."""
        c, prefix = self.config, "videomae." if any(n.startswith("videomae.") for n in self.weights) else ""
        patch, embed = (c["tubelet_size"], c["patch_size"], c["patch_size"]), f"{prefix}embeddings.patch_embeddings"
        weight, bias = (self.weights[f"{embed}.projection.{part}"] for part in ("weight", "bias"))
        x = F.conv3d(videos_BTCHW.transpose(1, 2), weight, bias, stride=patch).flatten(2).transpose(1, 2)
        x = x + table(x.shape[1], x.shape[2])
        if masked_BN is not None:
            x = x[~masked_BN].view(len(x), -1, x.shape[2])
        for number in range(c["num_hidden_layers"]):
            x = self.layer(x, f"{prefix}encoder.layer.{number}", c["num_attention_heads"])
        return x if c["use_mean_pooling"] else self.norm(x, f"{prefix}layernorm", c["layer_norm_eps"])

    def logits(self, videos_BTCHW):
        """VideoMAEForVideoClassification, with mean pooling."""
        assert self.config["use_mean_pooling"]
        return self.linear(self.norm(self.hidden_states(videos_BTCHW).mean(1), "fc_norm", DEFAULT_EPS), "classifier")

    def reconstruction(self, videos_BTCHW, masked_BN):
        """VideoMAEForPreTraining: pixels of the masked tokens."""
        seen = self.linear(self.hidden_states(videos_BTCHW, masked_BN), "encoder_to_decoder", bias=False)
        (B, N), E = masked_BN.shape, seen.shape[2]
        positions = table(N, E).expand(B, -1, -1)
        hidden = self.weights["mask_token"] + positions[masked_BN].view(B, -1, E)
        x = torch.cat([seen + positions[~masked_BN].view(B, -1, E), hidden], dim=1)
        for number in range(self.config["decoder_num_hidden_layers"]):
            x = self.layer(x, f"decoder.decoder_layers.{number}", self.config["decoder_num_attention_heads"])
        return self.linear(self.norm(x[:, -hidden.shape[1] :], "decoder.norm", DEFAULT_EPS), "decoder.head")
