"""Single vectors on the speedrun's task: what is not a mean of linear numbers knows, in time, whose colour is whose.

    python records/single_vectors.py model=closed,bilinear,ends1,ends2,ends3,siglip,labclip steps=300

``bilinear`` is the mean of products of two projections of a token; ``ends1`` to ``ends3`` are a class token behind one
to three layers, as in CLIP; ``siglip`` has SigLIP's head. ``labclip`` maps the captions of a finished ``clip``.
``closed`` learns without a gradient (it is told which words are colours): row nought.
"""

import math
import sys

import numpy as np
import speedrun
import torch
import torch.nn.functional as F
from speedrun import BATCH, COLOURS, NAMED, NUMBERS, RESERVED, TOKENS, WHITE, WIDTH, ImageTower, Scenes, clock
from torch import nn

speedrun.RATES |= {"bilinear": (3e-3, 0.02), "ends1": (6e-3, 0.0025), "ends2": (6e-3, 0.0025), "ends3": (6e-3, 0.0025)}
speedrun.RATES |= {"siglip": (3e-3, 0.0025), "labclip": (3e-3,)}
speedrun.INKS |= {"bilinear": "#39c", "ends1": "#cb9", "ends2": "#a86", "ends3": "#752"}
speedrun.INKS |= {"siglip": "#3a6", "labclip": "#666"}


class Pool(speedrun.Pool):
    def __init__(self, kind, width):
        super().__init__(kind, width)
        if kind == "bilinear":
            self.left, self.right = (nn.Linear(width, math.isqrt(NUMBERS), bias=False) for _ in range(2))
        if kind == "siglip":
            self.query = nn.Parameter(0.02 * torch.randn(width))
            self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
            layers = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            self.after = nn.Sequential(*layers)
        if kind.startswith("ends"):
            self.end = nn.Parameter(0.02 * torch.randn(width))
            layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
            depth = int(kind.removeprefix("ends"))
            self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
            self.projection = nn.Linear(width, width, bias=False)

    def forward(self, tokens):
        if self.kind == "bilinear":
            tokens = (self.left(tokens)[..., None] * self.right(tokens)[..., None, :]).flatten(2).mean(1, keepdim=True)
        if self.kind == "siglip":
            tokens, _ = self.attention(self.query.expand(len(tokens), 1, -1), tokens, tokens, need_weights=False)
            tokens = tokens + self.after(tokens)
        if self.kind.startswith("ends"):
            tokens = self.layers(torch.cat([self.end.expand(len(tokens), 1, -1), tokens], 1))
            tokens = self.projection(tokens[:, :1])
        return super().forward(tokens)


class ClosedForm:
    """One vector a side without a gradient: over all patches, the sum of (score of a colour) x (score of a thing).

    The scores are by ridge regression, from random ReLU features of a patch to the words of the caption. Then it is
    done again, with each named pair at its two best patches alone. It is told which words are colours.
    """

    @torch.no_grad()
    def __init__(self, world, seed, scenes=2000, features=1024, ridge=1e-2):
        torch.manual_seed(seed)
        self.tower, self.words, self.weights = ImageTower(WIDTH), len(world.names), None
        self.maps = torch.randn(WHITE, features) / WHITE**0.5, torch.randn(features)
        data = world.training_scenes(np.random.default_rng(seed), scenes)
        self.tower.whiten(world.draw(part(data, 500)))
        for _ in range(2):
            gram, moment, share = 0, 0, 0
            for start in range(0, scenes, 200):
                some = part(data, start, start + 200)
                x = self.features(world.draw(some))
                named = torch.from_numpy(np.stack([some.colours, some.things + len(COLOURS)])[:, :, :NAMED])
                named = named[:, :, None].expand(-1, -1, TOKENS, -1)  # [colour or thing, n, TOKENS, NAMED]
                places = torch.ones(named.shape[1:])
                if self.weights is not None:
                    scores = (x @ self.weights).clamp(min=0)
                    both = scores.gather(2, named[0]) * scores.gather(2, named[1])
                    places = torch.zeros_like(both).scatter_(1, both.topk(2, 1).indices, 1.0)
                target = torch.zeros(*x.shape[:2], len(COLOURS) + self.words)
                for words in named:
                    target.scatter_reduce_(2, words, places, "amax")
                x, target = x.flatten(0, 1), target.flatten(0, 1)
                gram, moment, share = gram + x.T @ x, moment + x.T @ target, share + target.sum(0)
            count = scenes * TOKENS
            self.weights = torch.linalg.solve(gram / count + ridge * torch.eye(features + 1), moment / count)
            self.weights[-1] -= share / count  # a score is above zero where a word is likelier than anywhere

    def features(self, pixels):
        return F.pad((self.tower.white(pixels) @ self.maps[0] + self.maps[1]).relu(), (0, 1), value=1.0)

    def images(self, pixels):
        colours, things = (self.features(pixels) @ self.weights).clamp(min=0).split([len(COLOURS), self.words], 2)
        return F.normalize((colours.transpose(1, 2) @ things).flatten(1)[:, None], dim=2)

    def texts(self, ids):
        # "a red cat a blue crab and a pink kiwi"; the numbers of words begin with "", "a" and "and"
        colours, things = (ids[:, places] - 3 for places in ([1, 4, 8], [2, 5, 9]))
        pairs = torch.zeros(len(ids), len(COLOURS) * self.words)
        pairs.scatter_(1, colours * self.words + things - len(COLOURS), 1.0)
        return F.normalize(pairs[:, None], dim=2)


def part(scenes, *place):
    return Scenes(*(array[slice(*place)] for array in scenes))


def labclip(world, seed, steps):
    """Train ``clip``, then as many steps a linear map of its captions, with exchanged captions as negatives.

    After Koishigarina et al. (2025), LABCLIP. An exchange that names a pair of the test is no negative.
    """
    model, _, seconds = speedrun.train(world, "clip", seed, steps, Pool)
    random, texts, linear, start = np.random.default_rng(seed + 1), model.texts, nn.Linear(WIDTH, WIDTH), clock()
    nn.init.eye_(linear.weight)
    scale = nn.Parameter(model.requires_grad_(False).log_scale.clone())
    adam = torch.optim.Adam([*linear.parameters(), scale], speedrun.RATES["labclip"][0])
    model.texts = lambda ids: F.normalize(linear(texts(ids)), dim=2)
    for _ in range(steps):
        scenes = world.training_scenes(random, BATCH)
        others = scenes._replace(colours=scenes.colours[:, [1, 0, *range(2, scenes.colours.shape[1])]])
        of_test = ((others.things % RESERVED == 0) & (others.colours < RESERVED)).any(1)
        captions = torch.cat([world.encode(scenes), world.encode(others)])
        scores, _ = speedrun.similarity(model.images(world.draw(scenes)), model.texts(captions))
        scores = scale.exp().clamp(max=100) * scores
        forward = scores.masked_fill(F.pad(torch.from_numpy(of_test), (BATCH, 0)), -torch.inf)
        true = torch.arange(BATCH)
        loss = F.cross_entropy(forward, true) + F.cross_entropy(scores[:, :BATCH].T, true)
        adam.zero_grad()
        loss.backward()
        adam.step()
    seconds = seconds + clock() - start
    found = speedrun.evaluate(world, model, world.test_scenes(200, 10**6 + 1))
    print("labclip  seed {}  of 200: {:4.1f} / {:4.1f} %  rejected {:4.1f}".format(seed, *found), flush=True)
    return model, [], seconds


def train(world, kind, seed, steps):
    if kind == "labclip":
        return labclip(world, seed, steps)
    if kind != "closed":
        return speedrun.train(world, kind, seed, steps, Pool)
    start = clock()
    return ClosedForm(world, seed), [], clock() - start


if __name__ == "__main__":
    kinds = (*speedrun.INKS, "closed")
    options = dict(option.split("=", 1) for option in sys.argv[1:])
    speedrun.main(**options, kinds=kinds, teach=train, sources=(__file__, speedrun.__file__))
