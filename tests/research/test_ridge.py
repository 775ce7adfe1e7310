"""The closed forms: ridge regression, blind to the order of words, and the product of its scores, which reads it."""

import random

import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from filip.eval.encoders import Loading
from filip.models import DualEncoder, build_model, load_preset
from filip.text.tokenizer import tokenize
from filip_research.ridge import LEAST, RARE, RIDGE, ProductEncoder, RidgeEncoder


def with_a_stem() -> DualEncoder:
    torch.manual_seed(0)
    config = load_preset("tiny")
    config.interaction, config.pooling, config.image.stem = "pooled", "mean", "test_efficientnet"
    return build_model(config).eval()


def test_vectors_are_those_of_ridge_regression_to_the_tokens_of_captions() -> None:
    model = with_a_stem()
    config = model.config
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


def test_a_product_of_scores_tells_apart_what_it_was_never_shown() -> None:
    """A third of the pairs of colour and thing is reserved: the true and the wrong caption of a test are both new."""
    model = with_a_stem()
    colours, things = ["red", "blue", "green", "pink", "cyan", "grey"], ["cat", "car", "hat", "sun", "key", "bus"]
    looks = torch.randn(12, model.image.stem(torch.zeros(1, 3, 32, 32)).shape[1])
    draw = random.Random(0)

    def scene(new: bool) -> tuple[str, str, torch.Tensor]:
        rest = draw.randrange(3)
        tints, shown = (draw.sample([n for n in range(6) if not new or n % 3 == rest], 2) for _ in range(2))
        if not new and any(c % 3 == t % 3 for c, t in zip(tints, shown, strict=True)):
            return scene(new)
        cells = 0.3 * torch.randn(16, looks.shape[1])
        for column, thing, tint in zip(draw.sample(range(4), 2), shown, tints, strict=True):
            cells[column::4] += looks[tint] + looks[6 + thing]
        true, wrong = (
            " and ".join(f"a {colours[c]} {things[t]}" for c, t in zip(order, shown, strict=True))
            for order in (tints, tints[::-1])
        )
        return true, wrong, cells.T.view(1, -1, 4, 4)

    trained = [scene(new=False) for _ in range(600)]
    maps = torch.cat([cells for _, _, cells in trained])
    encoder = ProductEncoder(model, [(maps, *tokenize([true for true, _, _ in trained]))], Loading())
    assert encoder.details == {"numbers": "36"}, "colours by things; `a` and `and` are in every caption"
    model.image.stem = torch.nn.Identity()
    tested = [scene(new=True) for _ in range(200)]
    images = encoder.encode_images(torch.cat([cells for _, _, cells in tested]))
    true, wrong = ((images * encoder.encode_texts([one[side] for one in tested])[0]).sum(1) for side in (0, 1))
    assert (true > wrong).float().mean() > 0.95
