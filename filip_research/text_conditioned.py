"""FLAIR's local term: a caption attends over the patches of an image and judges the result (Xiao et al., 2025).

With the unit vector t_j of a caption and the unit patches v_ik of an image

    a_ijk = softmax over k of <Q t_j, K v_ik> / sqrt(d)     with one more patch of zeros, to attend to nothing
    u_ij  = sum over k of a_ijk V v_ik, normalised          the image as this caption sees it
    L     = - 1/b  sum over own images i and all captions j of  log sigmoid(z_ij (t <u_ij, t_j> + c))

z_ij is 1 for positives and -1 otherwise. The condition and the caption that u_ij is compared with are always the
same: to compare u_ij with the image's own caption would let two captions decide without looking. With soft targets
all captions of one group are positives, which is how several captions of an image count in one batch.

The matrices Q, K, V and the bias are learned with the model. FLAIR adds its loss on global vectors with several
captions to an image, here ``loss.sigmoid``. The differences: in FLAIR's code the attention has several heads, an
output layer and random initial weights; here it has one head and starts as attention by cosine (Q and K multiples of
the identity, V the identity), so that it means something at the first step. Its text vector has a projection of its
own; ours is [EOS] through the projection of all tokens.

Captions of all ranks meet this rank's images one block at a time, forward and backward, gathered or around the ring:
ranks send the query and the vector of each caption.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.train.losses.term import BatchShape, LossInput, Term, TermOutput, transport_dtype
from filip_research.sigmoid import INITIAL_BIAS, chance, sigmoid_of
from late_interaction import Blockwise, distributed_late_interaction

INITIAL_TEMPERATURE = 0.1  # temperature of the attention by cosine


def compute(batch: LossInput) -> TermOutput:
    """Compute the sigmoid loss over the cosine of each caption with its attended patches of each image."""
    image, vectors = batch.encoded.image, batch.vectors.text
    query, key, value = (batch.parameters[f"text_conditioned_{name}"][0] for name in ("query", "key", "value"))
    with torch.autocast(image.device.type, enabled=False):
        patches = torch.cat([image @ key.T, image @ value.T], dim=2)
        captions = torch.cat([vectors @ query.T, vectors], dim=1)
    similarity = distributed_late_interaction(
        patches,
        captions,
        torch.ones(len(captions), dtype=torch.int64, device=captions.device),
        exchange=batch.settings.exchange,
        transport_dtype=transport_dtype(batch.settings),
        backend=Blockwise(attended_similarity, width=image.shape[2]),
    )
    loss, bias = sigmoid_of(batch, similarity.i2t, "text_conditioned_bias"), batch.parameters["text_conditioned_bias"]
    return TermOutput(loss.loss, {"accuracy/i2t": loss.accuracy, "optimizer/logit_bias": bias.mean()})


def attended_similarity(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine of a caption with its attended patches of an image (FLAIR, Xiao et al., 2025).

    ``images`` [i, n1, 2 d]: the key and the value of each patch, one after the other. ``texts`` [t, 1, 2 d]: the query
    of each caption and the unit vector that the result is compared with. A patch of zeros is added, so that a caption
    may attend to nothing. Returns the same [i, t] twice.
    """
    keys, values = images.chunk(2, dim=2)
    queries, vectors = texts[:, 0].chunk(2, dim=1)
    attention = torch.einsum("ind,td->itn", keys, queries) / math.sqrt(keys.shape[2])
    weights = F.pad(attention, (0, 1)).softmax(dim=2)[..., :-1]
    attended = F.normalize(torch.einsum("itn,ind->itd", weights, values), dim=2)
    similarity = torch.einsum("itd,td->it", attended, vectors)
    return similarity, similarity


def initial(dim: int) -> dict[str, Tensor]:
    """Return parameters for attention by cosine with :data:`INITIAL_TEMPERATURE`, and SigLIP's bias."""
    identity = torch.eye(dim)[None]
    factor = math.sqrt(math.sqrt(dim) / INITIAL_TEMPERATURE)
    return {
        "text_conditioned_query": factor * identity,
        "text_conditioned_key": factor * identity,
        "text_conditioned_value": identity,
        "text_conditioned_bias": torch.tensor([INITIAL_BIAS]),
    }


def memory(shape: BatchShape) -> float:
    """Return the bytes for this rank's tokens, twice as wide, with float32 gradients.

    Added are queries and vectors of all ranks, and the matrix of logits.
    """
    texts = shape.setting.global_batch if shape.exchange == "gather" else 4 * shape.pairs
    logits = 4 * 4 * shape.pairs * shape.setting.global_batch
    return shape.pairs * shape.patches * shape.dim * 3 * 8 + texts * 2 * shape.dim * 8 + logits


TEXT_CONDITIONED = Term(
    compute,
    "tokens and vectors",
    chance,
    memory,
    "sigmoid of captions and what they attend to",
    initial,
    exchanged=("vectors",),
    citation=(
        "Xiao et al., FLAIR: VLM with Fine-grained Language-informed Image Representations, CVPR 2025 "
        "(arXiv 2412.03561)",
    ),
)
