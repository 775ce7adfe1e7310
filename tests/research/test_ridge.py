"""The closed-form control: against scikit-learn's ridge regression, and blind to the order of words."""

import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from filip.eval.encoders import Loading
from filip.models import build_model, load_preset
from filip.text.tokenizer import tokenize
from filip_research.ridge import LEAST, RARE, RIDGE, RidgeEncoder


def test_vectors_are_those_of_ridge_regression_to_the_tokens_of_captions() -> None:
    torch.manual_seed(0)
    config = load_preset("tiny")
    config.interaction, config.pooling, config.image.stem = "pooled", "mean", "test_efficientnet"
    model = build_model(config).eval()
    words = ["red", "blue", "green", "cat", "car", "hat"]
    captions = [f"a {words[n % 3]} {words[3 + n % 2]} and a {words[(n + 1) % 3]} hat" for n in range(40)] + ["snow"]
    maps = model.image.stem(torch.randn(len(captions), 3, config.image.image_size, config.image.image_size)).detach()
    ids, lengths = tokenize(captions)
    encoder = RidgeEncoder(model, [(maps[:20], ids[:20], lengths[:20]), (maps[20:], ids[20:], lengths[20:])], Loading())

    known = [token for token in range(config.text.vocab_size) if ((ids == token).any(1)).sum() >= LEAST and token]
    bags = torch.stack([(ids == token).any(1) for token in known], 1).double()
    targets = (bags - bags.mean(0)) * bags.mean(0) ** -RARE
    features = torch.cat([encoder._features(maps[:20]), encoder._features(maps[20:])]).double()
    alpha = RIDGE * len(features) * float(features.var(0, unbiased=False).mean())
    fitted = torch.from_numpy(Ridge(alpha).fit(features, targets).predict(features))
    own = (encoder._features(maps).double() - encoder.mean) @ encoder.map
    torch.testing.assert_close(own, fitted, rtol=1e-5, atol=1e-6)
    texts, _ = encoder.encode_texts(captions)
    torch.testing.assert_close(texts, F.normalize(targets).float())
    assert encoder.details == {"numbers": str(len(known))}
    first, second = encoder.encode_texts(["a red cat and a blue hat", "a blue cat and a red hat"])[0]
    assert torch.equal(first, second)

    pairs = RidgeEncoder(model, [(maps, ids, lengths)], Loading(), pairs=True)
    assert int(pairs.details["numbers"]) > len(known)
    first, second = pairs.encode_texts(["a red cat and a blue hat", "a blue cat and a red hat"])[0]
    assert not torch.equal(first, second), "which colour is before which thing is in the vector now"
