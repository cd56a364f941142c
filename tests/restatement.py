"""The paper once more, as simply as torch allows, to hold the package against. Imports nothing of it.

Weights are a dict of tensors under the names of the package's state dict; everything runs in the precision of those.
Loops where a loop is what the sentence of the paper says, a convolution for the embedding, scores written out for
attention.
"""

import math

import torch
import torch.nn.functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def unit_clip(frames_BTHWC, dtype):
    """(B, C, T, H, W) in [0, 1]."""
    return frames_BTHWC.to(dtype).movedim(-1, 1) / 255


def normalized_clip(frames_BTHWC, dtype):
    """(B, C, T, H, W) as the encoder wants it."""
    clip = unit_clip(frames_BTHWC, dtype)
    return (clip - torch.tensor(MEAN, dtype=dtype).view(3, 1, 1, 1)) / torch.tensor(STD, dtype=dtype).view(3, 1, 1, 1)


def position_table(tokens, width, dtype):
    """angle = pos / 10000^(2 (i // 2) / width), sine on even i, cosine on odd i."""
    rows = []
    for pos in range(tokens):
        angles = [pos / 10000 ** (2 * (i // 2) / width) for i in range(width)]
        rows.append([math.sin(a) if i % 2 == 0 else math.cos(a) for i, a in enumerate(angles)])
    return torch.tensor(rows, dtype=torch.float64).to(dtype)


def norm(x, weights, name):
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * weight + bias


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attention(qkv, heads):
    width = qkv.shape[-1] // 3
    per_head = width // heads
    outputs = []
    for head in range(heads):
        q, k, v = (qkv[..., part * width + head * per_head :][..., :per_head] for part in range(3))
        outputs.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(per_head), dim=-1) @ v)
    return torch.cat(outputs, dim=-1)


def block(x, weights, name, heads, scale_2B=None):
    ones = torch.ones(2, len(x), dtype=x.dtype)
    attention_scale, mlp_scale = (ones if scale_2B is None else scale_2B)[..., None, None]
    mixed = attention(linear(norm(x, weights, f"{name}.norm1"), weights, f"{name}.attn.qkv"), heads)
    x = x + attention_scale * linear(mixed, weights, f"{name}.attn.proj")
    hidden = linear(norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1")
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + mlp_scale * linear(hidden, weights, f"{name}.mlp.fc2")


def embed(frames_BTHWC, weights):
    """Every token of the clip, by the convolution, with its position."""
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    clip = normalized_clip(frames_BTHWC, kernel.dtype)
    tokens = F.conv3d(clip, kernel, bias, stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
    return tokens + position_table(tokens.shape[1], tokens.shape[2], tokens.dtype)


def blocks(x, weights, prefix, depth, heads, scale_L2B=None):
    for layer in range(depth):
        x = block(x, weights, f"{prefix}{layer}", heads, None if scale_L2B is None else scale_L2B[layer])
    return x


def rows(tokens, idx):
    return torch.stack([token[i] for token, i in zip(tokens, idx, strict=True)])


def mae_prediction(frames_BTHWC, weights, visible, masked, *, depth, heads, decoder_depth, decoder_heads):
    """What the decoder says about the masked tokens. `visible` and `masked` hold token numbers of each row."""
    everything = embed(frames_BTHWC, weights)
    seen = norm(blocks(rows(everything, visible), weights, "blocks.", depth, heads), weights, "norm")
    full = []
    for tokens, idx in zip(seen, visible, strict=True):
        places = {int(i): token for i, token in zip(idx, tokens, strict=True)}
        full.append(torch.stack([places.get(n, weights["decoder.mask_token"]) for n in range(everything.shape[1])]))
    x = torch.stack(full) + position_table(everything.shape[1], everything.shape[2], everything.dtype)
    x = blocks(linear(x, weights, "decoder.embed"), weights, "decoder.blocks.", decoder_depth, decoder_heads)
    return rows(linear(norm(x, weights, "decoder.norm"), weights, "decoder.head"), masked)


def patch_of(clip_THWC, number, patch):
    """(t, h, w, C) pixels of one token of a clip."""
    t, h, w = patch
    _, H, W, _ = clip_THWC.shape
    frame, rest = divmod(number, (H // h) * (W // w))
    row, column = divmod(rest, W // w)
    return clip_THWC[frame * t : (frame + 1) * t, row * h : (row + 1) * h, column * w : (column + 1) * w]


def mae_loss(prediction_BMP, frames_BTHWC, masked, patch, normalize=True):
    """Squared error to the patches, normalized per color with the unbiased variance; mean over values and masked
    tokens."""
    errors = []
    for prediction, frames, idx in zip(prediction_BMP, frames_BTHWC, masked, strict=True):
        for values, number in zip(prediction, idx, strict=True):
            pixels = patch_of(frames.to(values.dtype) / 255, int(number), patch).reshape(-1, 3)
            if normalize:
                variance = ((pixels - pixels.mean(0)) ** 2).sum(0) / (len(pixels) - 1)
                pixels = (pixels - pixels.mean(0)) / torch.sqrt(variance + 1e-6)
            errors.append(((values - pixels.reshape(-1)) ** 2).mean())
    return torch.stack(errors).mean()


def pooled_features(frames_BTHWC, weights, *, depth, heads, scale_L2B=None):
    """Mean over all tokens, LayerNorm."""
    x = blocks(embed(frames_BTHWC, weights), weights, "blocks.", depth, heads, scale_L2B)
    return norm(x.mean(1), weights, "fc_norm")


def smoothed_cross_entropy(logits, label, smoothing):
    """-sum of target * log probability of one row, the target 1 - smoothing at the label and smoothing / K
    everywhere."""
    target = torch.full_like(logits, smoothing / len(logits))
    target[label] += 1 - smoothing
    return -(target * torch.log_softmax(logits, -1)).sum()
